"""Whole runs in a world one action of which never ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=quick", "eval.baseline=false", "eval.every_steps=0", "eval.episodes=4", "rollout.group_size=4"]


def start(directory: Path, backend: str, kind: str, *overrides: str) -> subprocess.Popen[str]:
    world = ["env=tests.stuck_world:make", f"env.args.kind={kind}", "env.timeout_s=5", f"output_dir={directory}"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"backend={backend}", *QUICK, *world, "run_name=run", *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=(directory / "stderr").open("w"),
        cwd=directory,
    )


@pytest.mark.parametrize(("backend", "kind"), [("legacy", "hangs"), ("areal", "plain")])
def test_an_action_that_never_ends_costs_its_episode(backend: str, kind: str, tmp_path: Path) -> None:
    process = start(tmp_path, backend, kind, "max_steps=3", "rollout.max_refills=0")
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    assert "no end within 5 s (env.timeout_s)" in text + (tmp_path / "stderr").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["episodes_infra_error"] for row in rows) >= 1


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_an_action_that_blocks_its_loop_is_named_and_does_not_keep_the_run_from_ending(
    backend: str, tmp_path: Path
) -> None:
    process = start(tmp_path, backend, "blocks")
    deadline = time.monotonic() + 250
    while "the event loop has been blocked" not in (said := (tmp_path / "stderr").read_text()):
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.2)
    assert "step (stuck_world.py:" in said
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=250)
    assert process.returncode == 130, text + (tmp_path / "stderr").read_text()
    assert (tmp_path / "run" / "checkpoints" / "last" / "manifest.json").is_file()
    assert "Traceback" not in (tmp_path / "stderr").read_text()
