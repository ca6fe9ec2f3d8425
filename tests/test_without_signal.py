"""Runs in which groups carry no signal: every step ends, says why, and leaves weights and version alone."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.areal_rig import StuckRunner, ran
from tests.legacy_rig import CONFIG, Watcher
from tests.tiny_random import build
from trainers.config import EvalConfig, TrainConfig

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LEGACY = replace(CONFIG, eval=EvalConfig(every_steps=0, episodes=4, baseline=False))
PHASES = [replace(LEGACY, backend="areal", phase=phase) for phase in (1, 2, 3)]
PATHS = pytest.mark.parametrize("config", [LEGACY, *PHASES], ids=["legacy", "phase1", "phase2", "phase3"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@PATHS
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_step_in_which_nothing_was_learnt_is_a_step(
    weights: Path, tmp_path: Path, config: TrainConfig, reward: float
) -> None:
    run = ran(weights, tmp_path / "run", replace(config, max_steps=3), reward=lambda _: reward)
    assert [row["step"] for row in run.rows] == [1, 2, 3]
    for row in run.rows:
        assert (row["loss"], row["lr"], row["groups_kept"], row["policy_version"]) == (None, None, 0, 0)
    rollout = config.rollout
    rounds = 1 + rollout.max_refills
    ahead = rollout.max_staleness * (config.backend == "areal")
    assert run.played <= (3 + 1 + ahead) * rounds * rollout.groups_per_step * rollout.group_size
    assert sum(row["groups_filtered"] for row in run.rows) >= 3 * rollout.groups_per_step
    said = [line for line in run.messages if "groups without signal" in line]
    assert len(said) == 3
    assert said[0].startswith("nothing to learn in step 1: ")
    assert said[0].endswith("; the policy stays at version 0")
    assert (tmp_path / "run" / "checkpoints" / "last" / "manifest.json").is_file()


def few_rewards() -> Any:
    """Rewards that differ in some groups only: eight episodes alike, then eight that are not."""
    count = itertools.count()
    return lambda _: float((number := next(count)) // 8 % 2 and number % 2)


@PATHS
def test_versions_count_the_steps_that_changed_the_weights(weights: Path, tmp_path: Path, config: TrainConfig) -> None:
    config = replace(
        config,
        max_steps=8,
        rollout=replace(config.rollout, groups_per_step=1, max_refills=0, max_staleness=1, concurrency=4),
    )
    run = ran(weights, tmp_path / "run", config, reward=few_rewards())
    learnt = list(itertools.accumulate(int(row["groups_kept"] > 0) for row in run.rows))
    assert [row["policy_version"] for row in run.rows] == learnt
    assert 0 < learnt[-1] < 8
    assert all(0 <= row["staleness_max"] <= 1 for row in run.rows)
    # Another backend goes on from there, with step and version apart.
    other = replace(PHASES[2] if config.phase != 3 else LEGACY, rollout=config.rollout, max_steps=10)
    more = ran(weights, tmp_path / "more", replace(other, resume=str(tmp_path / "run")))
    assert [row["step"] for row in more.rows] == [9, 10]
    assert more.rows[0]["policy_version"] == learnt[-1] + int(more.rows[0]["groups_kept"] > 0)
    assert all(0 <= row["staleness_max"] <= 1 for row in more.rows)


@PATHS
def test_the_time_budget_counts_while_collecting(weights: Path, tmp_path: Path, config: TrainConfig) -> None:
    run = ran(weights, tmp_path / "run", replace(config, max_minutes=0.02), runner=StuckRunner)
    assert (run.result.stop_reason, run.result.steps) == ("max_minutes", 0)
    assert run.result.rollout_s >= 1.2
    again = replace(config, max_minutes=0.02, resume=str(tmp_path / "run"))
    assert ran(weights, tmp_path / "again", again).result.stop_reason == "max_minutes"


class Impatient(Watcher):
    """Presses Ctrl-C when the second step is being collected."""

    def phase(self, name: str, done: int, total: int) -> None:
        if name == "rollouts" and self.steps:
            raise KeyboardInterrupt


@PATHS
def test_ctrl_c_while_collecting_keeps_what_there_is(weights: Path, tmp_path: Path, config: TrainConfig) -> None:
    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        ran(weights, tmp_path / "run", replace(config, max_steps=50), watcher=watcher)
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert state["step"] == len(watcher.steps) >= 1


@pytest.mark.parametrize(
    "launcher",
    [
        ["train.py", "phase=3"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", "phase=3"],
        ["train.py", "scheduler=local"],
    ],
    ids=["one process", "two processes", "cluster"],
)
def test_a_run_without_any_signal_ends_and_says_why(launcher: list[str], tmp_path: Path) -> None:
    words = [str(ROOT / word) if word == "train.py" else word for word in launcher]
    keys = "experiment=quick reward.success=0 eval.baseline=false eval.episodes=4 max_steps=2 threads=1 run_name=run"
    ended = subprocess.run(
        [sys.executable, *words, *keys.split(), "rollout.groups_per_step=2", f"output_dir={tmp_path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=1200,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"], row["groups_kept"], row["policy_version"]) for row in rows] == [
        (1, None, 0, 0),
        (2, None, 0, 0),
    ]
    assert rows[0]["groups_filtered"] > 0  # places that a group of the first step gave up may be the second's
    assert all(f"nothing to learn in step {step}: " in ended.stdout for step in (1, 2))
    assert "groups without signal" in ended.stdout
