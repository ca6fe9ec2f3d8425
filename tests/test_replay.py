"""Past successes stand in for failures of a group that failed as a whole."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cua_agent.trajectory import Trajectory
from tests.legacy_rig import CONFIG, MakeRig
from tests.toy_world import toy_task, trajectory
from trainers.config import ReplayConfig, TrainConfig
from trainers.protocol import Episode, EpisodeSpec, Group, GroupSpec
from trainers.rollouts.replay import SuccessPool


def config(share: float = 0.5, **keys: int) -> TrainConfig:
    return replace(CONFIG, replay=ReplayConfig(share=share, **keys))


def group(number: int, rewards: Sequence[float], version: int = 0, task: str = "tap") -> Group:
    name = f"g{number:06d}"

    def episode(member: int, reward: float) -> Episode:
        row = trajectory(reward, group_id=name, episode_id=f"{name}-{member}")
        return [replace(row, versions=np.where(row.loss_mask == 1, version, -1).astype(np.int32))]

    return Group(GroupSpec(toy_task(task), number, name), [episode(i, reward) for i, reward in enumerate(rewards)])


def trained(group: Group) -> list[tuple[str, float]]:
    assert {row.group_id for row in group.rows} == {group.spec.group_id}
    return [(row.episode_id, row.reward) for row in group.rows]


def test_a_failed_group_gets_the_newest_successes_of_its_task_in_place_of_as_many_failures() -> None:
    pool = SuccessPool(config(share=0.5))
    won = group(0, [1, 0, 1, 1])
    assert pool.completed(won, 0) is won and not won.replayed
    assert pool.completed(group(1, [0, 0, 0, 0]), 0).replayed == []  # no step collected the success
    pool.keep([won])
    failed = pool.completed(group(1, [0, 0, 0, 0], version=3), 3)
    assert trained(failed) == [
        ("g000001-0", 0.0), ("g000001-1", 0.0), ("g000001-replay0", 1.0), ("g000001-replay1", 1.0)
    ]  # fmt: skip
    assert len(failed.episodes) == 4  # what was played, and is counted
    for row, source in zip(failed.rows[2:], (won.rows[2], won.rows[3]), strict=True):
        assert row.logprobs is source.logprobs and row.versions is source.versions and row.seed == source.seed


@pytest.mark.parametrize(
    ("keys", "task", "version"),
    [({"share": 0.0}, "tap", 1), ({}, "other", 1), ({"max_age": 2}, "tap", 3), ({"share": 0.2}, "tap", 1)],
)
def test_nothing_is_replayed_without_share_or_success_of_the_task_or_when_it_is_too_old(
    keys: dict[str, float], task: str, version: int
) -> None:
    pool = SuccessPool(config(**keys))  # type: ignore[arg-type]
    pool.keep([group(0, [1, 1, 1, 1])])
    assert pool.completed(group(1, [0, 0, 0, 0], version, task), version).replayed == []


def test_an_own_failure_is_left_to_compare_with_and_replayed_ones_are_not_kept_again() -> None:
    pool = SuccessPool(config(share=0.5, per_task=1))
    pool.keep([group(0, [1, 1])])
    failed = pool.completed(group(1, [0, 0], 1), 1)
    assert trained(failed) == [("g000001-0", 0.0), ("g000001-replay0", 1.0)]
    pool.keep([failed])
    assert pool.completed(group(2, [0], 1), 1).replayed == []
    assert [row.versions.max() for row in pool.completed(group(3, [0, 0], 9), 9).replayed[0]] == [0]


def test_a_run_trains_on_replayed_successes_and_says_how_old_they_are(make_rig: MakeRig) -> None:
    """The policy wins in the first step and fails ever after."""
    wins = True

    def reward(token: int) -> float:
        return float(token % 2 == 0) if wins else 0.0

    def hook(spec: EpisodeSpec) -> None:
        nonlocal wins
        wins = int(spec.group_id[1:]) < 2 if spec.group_id.startswith("g") else False

    rollout = replace(CONFIG.rollout, max_refills=0)
    rig = make_rig(replace(config(), rollout=rollout, max_steps=3), reward=reward, hook=hook)
    rig.trainer.train()
    rows = rig.rows()
    assert rows[0]["episodes_replayed"] == 0 and rows[0]["staleness_max"] == 0
    assert rows[1]["episodes_replayed"] > 0 and rows[1]["success_rate"] == 0.0
    assert rows[1]["staleness_max"] == 1 and rows[2]["staleness_max"] == 2
    assert rows[1]["episodes"] == 8
    trained_on: Sequence[Trajectory] = rig.batch().trajectories
    assert {row.reward for row in trained_on} == {0.0, 1.0} and {row.episode_id[:7] for row in trained_on} <= {
        "g000004",
        "g000005",
    }


def test_a_checkpoint_keeps_the_successes_and_a_resumed_run_replays_them(make_rig: MakeRig) -> None:
    """The policy wins in the first step alone; what goes on after it has nothing else to learn from."""

    def hook(spec: EpisodeSpec) -> None:
        hook.wins = spec.group_id.startswith("g") and int(spec.group_id[1:]) < 2  # type: ignore[attr-defined]

    def reward(token: int) -> float:
        return float(token % 2 == 0) if hook.wins else 0.0  # type: ignore[attr-defined]

    once = replace(config(), rollout=replace(CONFIG.rollout, max_refills=0), max_steps=1)
    first = make_rig(once, reward=reward, hook=hook)
    first.trainer.train()
    saved = first.directory / "checkpoints" / "last"
    assert json.loads((saved / "manifest.json").read_text())["files"].keys() >= {"successes.safetensors"}
    resumed = make_rig(replace(once, max_steps=2, resume=str(saved)), reward=reward, hook=hook)
    resumed.trainer.train()
    [row] = resumed.rows()
    assert row["episodes_replayed"] > 0 and row["success_rate"] == 0.0 and row["staleness_max"] == 1


def test_what_a_checkpoint_keeps_is_what_there_was_when_it_was_taken(tmp_path: Path) -> None:
    pool, other = SuccessPool(config()), SuccessPool(config())
    assert pool.files() == {}
    pool.keep([group(0, [1, 0, 1, 0])])
    files = pool.files()
    pool.keep([group(1, [1, 0, 0, 0], version=1)])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content())
    other.restore(tmp_path)
    kept = other.completed(group(2, [0, 0, 0, 0], version=2), 2).replayed
    assert [(row.seed, row.reward, row.versions.max()) for [row] in kept] == [(0, 1.0, 0)] * 2
    other.restore(tmp_path / "of before there were any")
    assert other.completed(group(3, [0, 0, 0, 0], version=2), 2).replayed == []
