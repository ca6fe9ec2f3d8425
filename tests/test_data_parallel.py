"""Who of several processes plays, and trains on, what: everything exactly once, and as many rows for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toy_world import toy_task, trajectory
from trainers.config import ConfigError, InferenceConfig, LoraConfig, RolloutConfig, TrainConfig
from trainers.distributed.process_group import SingleProcess
from trainers.distributed.rank_config import config_of_rank
from trainers.distributed.torchrun import check_processes
from trainers.grpo.batching import Row
from trainers.rollouts.task_sampler import TaskSampler

shares = pytest.importorskip("trainers.areal.train.data_parallel")
together = pytest.importorskip("trainers.areal.rollout.distributed_rollouts")

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=20)
sizes = st.integers(1, 5)


@dataclass
class Seat(SingleProcess):
    """One process of a process_group that need not talk."""

    rank: int
    size: int


@given(lengths, sizes)
def test_a_deal_is_complete_and_even(lengths: list[int], hands: int) -> None:
    dealt = shares.deal(lengths, hands)
    assert sorted(index for hand in dealt for index in hand) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    sums = [sum(lengths[index] for index in hand) for hand in dealt]
    assert max(sums) - min(sums) <= max(lengths)


@given(lengths, sizes)
def test_every_row_has_one_process_and_every_process_as_many_rows(lengths: list[int], size: int) -> None:
    rows = [Row(trajectory(episode_id=str(n), ids=range(length)), 1.0, 0.5) for n, length in enumerate(lengths)]
    parts = [shares.rows_of_rank(rows, Seat(rank, size)) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    trained = [row.trajectory.episode_id for part in parts for row in part if row.trajectory.loss_mask.any()]
    assert sorted(trained, key=int) == [row.trajectory.episode_id for row in rows]
    fillers = [row for part in parts for row in part if not row.trajectory.loss_mask.any()]
    assert all((row.advantage, row.coefficient) == (0, 0) for row in fillers)
    assert all(len(row.trajectory) == min(lengths) for row in fillers)


@given(st.lists(lengths, min_size=1, max_size=6), sizes)
def test_every_group_has_one_process_and_every_process_as_many_rows(groups: list[list[int]], size: int) -> None:
    made = [
        [trajectory(1.0, episode_id=f"{n}-{m}", group_id=str(n), ids=range(length)) for m, length in enumerate(group)]
        for n, group in enumerate(groups)
    ]
    parts = [shares.groups_of_rank(made, Seat(rank, size)) for rank in range(size)]
    assert len({sum(len(group) for group in part) for part in parts}) == 1
    whole = [group for part in parts for group in part if group[0].loss_mask.any()]
    assert sorted(len(group) for group in whole) == sorted(len(group) for group in made)
    assert {row.episode_id for group in whole for row in group} == {row.episode_id for group in made for row in group}


def test_rows_with_and_without_images_do_not_mix() -> None:
    seen = replace(trajectory(episode_id="seen"), images=[np.zeros((2, 2, 3), np.uint8)])
    rows = [Row(seen, 1.0, 1.0), Row(trajectory(episode_id="blind"), 1.0, 1.0)]
    assert len(shares.rows_of_rank(rows, Seat(0, 1))) == 2
    with pytest.raises(ValueError, match="episode 'blind' has no image"):
        shares.rows_of_rank(rows, Seat(0, 2))


@given(st.integers(0, 100), sizes)
def test_a_position_belongs_to_every_process_in_turn(position: int, size: int) -> None:
    own = [together.position_of_rank(position, Seat(rank, size)) for rank in range(size)]
    assert sum(own) == position
    assert max(own) - min(own) <= 1


@given(st.integers(0, 50), sizes)
def test_the_shares_of_the_training_sequence_are_the_sequence(count: int, size: int) -> None:
    tasks = [toy_task(name, name[0]) for name in ("a1", "a2", "b1")]
    whole = TaskSampler(tasks, seed=3)
    parts = [TaskSampler(tasks, seed=3, share=(rank, size)) for rank in range(size)]
    assert [parts[n % size].next(1)[0] for n in range(count)] == whole.next(count)


def test_a_process_collects_its_share_of_a_step() -> None:
    config = TrainConfig(rollout=RolloutConfig(groups_per_step=6, concurrency=9))
    servers = ("http://a:1", "http://b:1", "http://c:1", "http://d:1")
    config = replace(config, inference=InferenceConfig(name="vllm", servers=servers))
    own = config_of_rank(config, Seat(0, 3))
    assert (own.rollout.groups_per_step, own.rollout.concurrency) == (2, 3)
    assert own.inference.servers == ("http://a:1", "http://d:1")
    assert config_of_rank(config, Seat(0, 1)) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(backend="legacy"), "backend=legacy with 2 processes: allowed: backend=areal phase=2 or phase=3"),
        (TrainConfig(backend="areal", phase=1), "backend=areal phase=1 with 2 processes: allowed: .*"),
        (
            TrainConfig(backend="areal", rollout=RolloutConfig(groups_per_step=3)),
            "rollout.groups_per_step=3 with 2 processes: allowed: multiples of 2",
        ),
        (
            TrainConfig(backend="areal", rollout=RolloutConfig(concurrency=1)),
            "rollout.concurrency=1 with 2 processes: allowed: multiples of 2",
        ),
        (
            TrainConfig(backend="areal", inference=InferenceConfig(name="vllm", servers=("http://a:1",))),
            "inference.servers=http://a:1 with 2 processes: allowed: at least 2 servers, because each .*",
        ),
        (
            TrainConfig(
                backend="areal",
                lora=LoraConfig(enabled=True),
                inference=InferenceConfig(name="vllm", servers=("http://a:1",), sync="merged"),
            ),
            "inference.servers=http://a:1 with 2 processes: allowed: at least 2 servers, because each .*",
        ),
    ],
)
def test_what_several_processes_cannot_train_is_refused(config: TrainConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_processes(config, 2)


def test_adapters_of_several_processes_share_one_server() -> None:
    config = TrainConfig(
        backend="areal",
        lora=LoraConfig(enabled=True),
        inference=InferenceConfig(name="vllm", servers=("http://a:1",)),
    )
    check_processes(config, 2)
    for rank in range(2):
        assert config_of_rank(config, Seat(rank, 2)).inference.servers == ("http://a:1",)
