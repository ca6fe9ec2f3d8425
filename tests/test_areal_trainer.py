"""The asynchronous trainer on a toy world: it collects ahead, within the bound, and survives what breaks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cua_agent.envs.base import EnvironmentFailure
from tests.areal_rig import ran
from tests.legacy_rig import CONFIG, TASKS, OneTokenRunner
from tests.tiny_random import build
from trainers.config import ReplayConfig, SamplingConfig, TrainConfig
from trainers.protocol import EpisodeSpec
from trainers.run.checkpoint_files import read_state

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

Hook = Any


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def trained(weights: Path, directory: Path, config: TrainConfig, **runner: Any) -> list[dict[str, Any]]:
    return ran(weights, directory, replace(config, backend="areal"), **runner).rows


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize("bound", [0, 2])
def test_staleness_stays_within_the_bound(weights: Path, tmp_path: Path, phase: int, bound: int) -> None:
    rollout, sampling = replace(CONFIG.rollout, max_staleness=bound), SamplingConfig(strategy="difficulty")
    config = replace(CONFIG, phase=phase, max_steps=6, rollout=rollout, sampling=sampling)
    rows = trained(weights, tmp_path / "run", config)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["staleness_max"] for row in rows) <= bound
    assert bound == 0 or max(row["staleness_max"] for row in rows) > 0
    assert all(row["groups_kept"] <= CONFIG.rollout.groups_per_step for row in rows)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["backend"], summary["phase"], summary["steps"]) == ("areal", phase, 6)
    known = read_state(tmp_path / "run" / "checkpoints" / "last").task_success
    assert set(known) == {task.id for task in TASKS}
    assert 0 < sum(episodes for _, episodes in known.values()) < sum(row["episodes"] for row in rows)


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_past_successes_are_trained_on_and_counted(weights: Path, tmp_path: Path, phase: int) -> None:
    """Of the first two groups some episodes win, then none ever again."""
    wins = True

    def hook(spec: EpisodeSpec) -> None:
        nonlocal wins
        wins = spec.group_id in ("g000000", "g000001")

    def reward(token: int) -> float:
        return float(wins and token % 2 == 0)

    rollout = replace(CONFIG.rollout, max_refills=0, concurrency=1)
    config = replace(CONFIG, phase=phase, max_steps=3, rollout=rollout, replay=ReplayConfig(share=0.5))
    rows = trained(weights, tmp_path / "run", config, runner=OneTokenRunner, hook=hook, reward=reward)
    assert [row["episodes_replayed"] for row in rows[:1]] == [0]
    later = [row for row in rows[1:] if row["episodes_replayed"]]
    assert later and all(row["staleness_max"] == row["step"] - 1 and row["success_rate"] == 0.0 for row in later)


def test_a_lost_episode_is_replaced_and_counted(weights: Path, tmp_path: Path) -> None:
    lost: list[str] = []

    def lose_some(spec: EpisodeSpec) -> None:
        if spec.episode_id.endswith("-1"):
            lost.append(spec.episode_id)
            raise EnvironmentFailure("the box died")

    rows = trained(weights, tmp_path / "run", replace(CONFIG, phase=1), hook=lose_some)
    assert sum(row["episodes_infra_error"] for row in rows) > 0
    assert len(lost) >= sum(row["episodes_infra_error"] for row in rows)


@pytest.mark.parametrize("error", [EnvironmentFailure("no box answers"), RuntimeError("a bug")])
def test_a_run_of_failures_stops_training_with_the_cause(weights: Path, tmp_path: Path, error: Exception) -> None:
    def hook(spec: EpisodeSpec) -> None:
        if not spec.episode_id.startswith("eval"):
            raise error

    with pytest.raises(EnvironmentFailure, match=f"8 groups in a row were lost; the last: .*{error}"):
        trained(weights, tmp_path / "run", replace(CONFIG, phase=1), hook=hook)
