"""Two real processes load a model: each reads its shards, and no other weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_process_group import ROOT, finished, launch
from tests.tiny_random import build

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


def test_no_process_holds_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(tmp_path / "model", hidden=512, layers=8, tied=False)
    size = (weights / "model.safetensors").stat().st_size
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed is given back, and not found again
    finished(launch(2, ROOT / "tests" / "process_group_loading.py", weights, tmp_path))
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, result in results.items():
            assert result["dtypes"] == ["False torch.bfloat16", "True torch.float32"], name
            assert result["wrong"] == [], name
            assert result["kept"] == [], name  # whole weights are gone once they are sharded
            assert result["kl"] == pytest.approx(0, abs=1e-6), name  # the reference is what was loaded
            assert result["kl_after"] > 1e-6, name  # also after a resumption
        # In bfloat16 the model takes half of its float32 file, and a shard a quarter.
        assert results["lora"]["peak"] < 0.35 * size
        assert results["full"]["peak"] < 0.75 * size  # float32 shards, and bfloat16 ones of the reference
        assert results["full"]["resumed"] < 1.3 * size  # two moments
        assert results["whole"]["peak"] > 0.45 * size  # the measure sees a whole load
