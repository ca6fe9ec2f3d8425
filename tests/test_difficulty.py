"""Which tasks are drawn when they are drawn by difficulty."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.tasks import seed_for
from tests.legacy_rig import CONFIG, TASKS, MakeRig, Rig
from tests.toy_world import toy_task, trajectory
from trainers.config import SamplingConfig, TrainConfig
from trainers.protocol import Group, GroupSpec
from trainers.rollouts.difficulty import TaskDifficulty, draw_probabilities, expected_success
from trainers.rollouts.task_sampler import TaskSampler, training_sampler, turns_allowed
from trainers.run.checkpoint_files import CheckpointError, read_state


def group(task: str, *rewards: float) -> Group:
    """A group of one-row episodes; a reward of 1 is a success."""
    spec = GroupSpec(toy_task(task), 0, "g000000")
    return Group(spec, [[trajectory(reward, episode_id=f"e{i}")] for i, reward in enumerate(rewards)])


def test_expected_success_by_hand() -> None:
    assert expected_success((0, 0), prior=0.5) == 0.5
    assert expected_success((8, 8), prior=0.5) == pytest.approx(10 / 12)
    assert expected_success((0, 16), prior=0.25) == pytest.approx(1 / 20)


def test_probabilities_by_hand() -> None:
    """Weights 1/4, 0 and 3/16 are drawn 4 : 0 : 3; a tenth stays uniform."""
    drawn = draw_probabilities([1 / 3] * 3, [0.5, 1.0, 0.25], floor=0.1)
    assert drawn == pytest.approx([0.1 / 3 + 0.9 * 4 / 7, 0.1 / 3, 0.1 / 3 + 0.9 * 3 / 7])
    assert draw_probabilities([0.75, 0.25], [0.0, 1.0], floor=0.0) == [0.75, 0.25]
    assert draw_probabilities([0.75, 0.25], [0.5, 0.2], floor=1.0) == [0.75, 0.25]


RATES = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(RATES, st.floats(0, 1))
def test_probabilities_sum_to_one_and_the_floor_holds(tasks: list[tuple[float, float]], floor: float) -> None:
    total = math.fsum(share for share, _ in tasks)
    uniform, success = [share / total for share, _ in tasks], [rate for _, rate in tasks]
    drawn = draw_probabilities(uniform, success, floor)
    assert math.fsum(drawn) == pytest.approx(1)
    assert all(chance >= floor * share - 1e-12 for chance, share in zip(drawn, uniform, strict=True))
    equal = draw_probabilities([1 / len(success)] * len(success), success, floor)
    by_variance = sorted(range(len(success)), key=lambda index: success[index] * (1 - success[index]))
    assert all(equal[a] <= equal[b] + 1e-12 for a, b in pairwise(by_variance))


def test_what_was_seen_fades_and_an_unplayed_task_is_as_its_category() -> None:
    difficulty = TaskDifficulty(half_life=1.0, floor=0.1)
    difficulty.observe([group("a", 1, 1, 0, 0), group("a", 1, 1)])
    assert difficulty.counts == {"a": (4.0, 6.0)}
    difficulty.observe([group("b", 0, 0)])
    assert difficulty.counts == {"a": (2.0, 3.0), "b": (0.0, 2.0)}
    known = TaskDifficulty(half_life=1.0, floor=0.0)
    known.counts = {"a": (0.0, 12.0)}
    drawn = known.probabilities({"hard": [toy_task("a"), toy_task("b")], "new": [toy_task("c")]})
    category = 2 / 16  # (0 + 4 / 2) / (12 + 4)
    rates = {"a": 4 * category / 16, "b": category, "c": 0.5}
    weights = {"a": 0.25 * rates["a"] * (1 - rates["a"]), "b": 0.25 * category * (1 - category), "c": 0.5 * 0.25}
    assert drawn == pytest.approx({task: weight / sum(weights.values()) for task, weight in weights.items()})


def drawn_tasks(counts: dict[str, tuple[float, float]], draws: int, floor: float = 0.1) -> Counter[str]:
    difficulty = TaskDifficulty(half_life=10, floor=floor)
    difficulty.counts = counts
    tasks = [toy_task(name) for name in ("solved", "open", "hopeless")]
    return Counter(spec.task.id for spec in TaskSampler(tasks, seed=1, difficulty=difficulty).next(draws))


def test_half_solved_tasks_come_first_and_no_task_is_forgotten() -> None:
    drawn = drawn_tasks({"solved": (400, 400), "open": (200, 400), "hopeless": (0, 400)}, draws=600)
    assert drawn["open"] > 500
    assert min(drawn["solved"], drawn["hopeless"]) > 5
    assert drawn == drawn_tasks({"solved": (400, 400), "open": (200, 400), "hopeless": (0, 400)}, draws=600)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_that_know_the_same_draw_the_same_sequence_together(size: int) -> None:
    tasks = [toy_task(name) for name in "abcd"]

    def sampler(share: tuple[int, int]) -> TaskSampler:
        difficulty = TaskDifficulty(half_life=10, floor=0.1)
        difficulty.counts = {"a": (3.0, 9.0)}
        return TaskSampler(tasks, seed=3, share=share, difficulty=difficulty)

    whole = sampler((0, 1)).next(12)
    parts = [sampler((rank, size)).next(12 // size) for rank in range(size)]
    assert [parts[index % size][index // size] for index in range(12)] == whole
    assert [spec.seed for spec in whole] == [seed_for("train", 3_000_000 + index) for index in range(12)]
    other = sampler((size - 1, size))
    assert other.named(2, whole[2 * size + size - 1].task.id) == whole[2 * size + size - 1]


def test_every_world_keeps_its_share() -> None:
    tasks = [
        replace(toy_task(f"{world}::{name}", f"{world}::c"), share=share)
        for world, share in (("x", 3.0), ("y", 1.0))
        for name in "ab"
    ]
    difficulty = TaskDifficulty(half_life=10, floor=0.0)
    difficulty.counts = {"x::a": (50.0, 50.0), "x::b": (50.0, 50.0)}
    drawn = [spec.task.id[0] for spec in TaskSampler(tasks, 0, difficulty=difficulty).next(40)]
    assert Counter(drawn) == {"x": 30, "y": 10}


# The curriculum of turns.


def test_turns_grow_to_what_the_run_allows() -> None:
    rollout = replace(CONFIG.rollout, groups_per_step=4, max_turns=10)
    config = replace(CONFIG, rollout=rollout, sampling=SamplingConfig(turns_start=4, turns_steps=3))
    allowed = [turns_allowed(config, 4 * step) for step in range(5)]
    assert allowed == [4, 6, 8, 10, 10]
    assert turns_allowed(config, 3) == 4
    task = replace(toy_task(), max_steps=7)
    sampler = training_sampler(config, [task], TaskDifficulty(10, 0.1))
    assert [sampler.at(4 * step).task.max_steps for step in range(4)] == [4, 6, 7, 7]
    assert training_sampler(CONFIG, [task], TaskDifficulty(10, 0.1)).at(0).task == task


# In a run.


def by_difficulty(config: TrainConfig = CONFIG, **keys: object) -> TrainConfig:
    return replace(config, sampling=SamplingConfig(strategy="difficulty"), **keys)  # type: ignore[arg-type]


def played(rig: Rig) -> list[tuple[str, int]]:
    return [(spec.task.id, spec.seed) for spec in rig.runner.played if spec.episode_id.startswith("g")]


def test_a_resumed_run_goes_on_with_what_it_knew_of_its_tasks(make_rig: MakeRig) -> None:
    straight, first = make_rig(by_difficulty(max_steps=4)), make_rig(by_difficulty())
    straight.trainer.train()
    first.trainer.train()
    counts = first.trainer.state.task_success
    assert counts and set(counts) <= {task.id for task in TASKS}
    second = make_rig(by_difficulty(max_steps=4, resume=str(first.directory)))
    assert second.trainer.state.task_success == counts
    second.trainer.train()
    assert played(first) + played(second) == played(straight)
    assert second.trainer.state.task_success == straight.trainer.state.task_success


def test_the_books_of_a_checkpoint_hold_no_negative_counts(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.trainer.save(rig.directory / "saved")
    file = rig.directory / "saved" / "trainer_state.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"task_success": {"left": [-1.0, 2.0]}}))
    with pytest.raises(CheckpointError, match=r"task_success.left=-1.0: it must be at least 0"):
        read_state(rig.directory / "saved")
