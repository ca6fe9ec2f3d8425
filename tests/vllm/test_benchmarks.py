"""The benchmarks of rollouts run against a server, on a small scale."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import ROOT, Server

SMALL = ["rollout.groups_per_step=2", "rollout.group_size=2", "rollout.concurrency=4", "rollout.max_turns=4"]


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    """What a benchmark writes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def test_the_cost_of_a_turn_by_part(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "turns.json"
    sizes = ["--episodes", "4", "--rounds", "1", "lora.r=8", "rollout.max_staleness=1"]
    figures = run("turn_cost.py", out, "--server", server.url, "--out", str(out), *sizes)
    assert figures["turns"] >= 4
    parts = [value for name, value in figures.items() if name.startswith("  ") and "rest" not in name]
    assert all(value >= 0 for value in parts)
    assert 0 < figures["request, KiB a turn"] < 40


@pytest.mark.timeout(900)
def test_both_backends_with_and_without_delays(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "async.json"
    sizes = ["--groups", "2", "--group-size", "2", "--staleness", "1", "--steps", "1", "--slow-steps", "1"]
    slow = ["--median", "0.02", "--p99", "0.1", "--together"]
    on_cpu = ["--device", "cpu", "--dtype", "float32", "lora.r=8", "rollout.max_turns=4"]
    figures = run("gpu_async.py", out, "--server", server.url, *sizes, *slow, "--out", str(out), *on_cpu)
    assert {"legacy", "phase 3", "legacy, slow", "phase 3, slow"} <= set(figures)
    assert figures["ratio"] > 0
    assert figures["bound_environments_s"] > 0
    assert figures["legacy"]["staleness_max"] == 0
    assert figures["phase 3, slow"]["staleness_max"] <= 1


@pytest.mark.timeout(600)
def test_a_learning_run_and_its_memory(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "learning"
    on_cpu = ["--device", "cpu", "--dtype", "float32", "--steps", "2"]
    short = [*SMALL, "lora.r=8", "rollout.max_staleness=1", "eval.episodes=4", "eval.every_steps=1"]
    figures = run("gpu_learning.py", out / "figures.json", "--server", server.url, "--out", str(out), *on_cpu, *short)
    assert figures["steps"] == 2
    assert [step for step, split, _ in figures["success"] if split == "seeds"] == [0, 1, 2]
    assert 1 <= len(figures["memory"]) <= 2
    assert all(0 < each["host"] < 64 for each in figures["memory"])
