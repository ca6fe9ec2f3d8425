"""AReaL's engine around models without eyes, loaded by peft and by Unsloth: packed rows do not see each other."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.text_rows import sampled_rows
from tests.tiny_random import build_text
from trainers.components import build_policy
from trainers.config import ArealConfig, LoraConfig, ModelConfig, OptimConfig, TrainConfig
from trainers.config.policy import LoaderConfig
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import Batch

areal_process = pytest.importorskip("trainers.areal.process")
pytestmark = pytest.mark.slow
needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed (make unsloth)"
)


@pytest.mark.parametrize("loader", ["peft", pytest.param("unsloth", marks=needs_unsloth)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gradients_equal_plain_torch_with_several_rows_packed_together(
    family: str, loader: str, tmp_path: Path
) -> None:
    from trainers.areal.train.phase2_learner import Phase2Learner

    areal_process.prepare_process(tmp_path)
    plain = TrainConfig(
        backend="areal",
        model=ModelConfig(path=str(build_text(tmp_path / "model", family, hidden=64)), observation="text"),
        lora=LoraConfig(enabled=True, r=4),
        optim=OptimConfig(learning_rate=1e-3),
        areal=ArealConfig(packed_tokens=600),
    )
    config = replace(plain, loader=LoaderConfig(name=loader))
    ours, theirs = PolicyLearner(build_policy(plain), plain), Phase2Learner(build_policy(config), config)
    try:
        rows = sampled_rows(ours._policy)
        assert 2 * max(map(len, rows)) < 600
        batch = Batch(rows, [1.0, -0.5, 0.3, -1.0])
        a, b = ours.loss_and_gradients(batch), theirs.loss_and_gradients(batch)
    finally:
        theirs.close()
    assert b.metrics["loss"] == pytest.approx(a.metrics["loss"], rel=1e-5, abs=1e-6)
    assert a.gradients.keys() == b.gradients.keys()
    wanted, got = (torch.cat([g[name].flatten() for name in a.gradients]) for g in (a.gradients, b.gradients))
    assert (wanted - got).norm() < 1e-5 * wanted.norm()
