import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.inference.base import InferenceFailure
from cua_agent.tasks import seed_for
from cua_agent.trajectory import Trajectory
from tests.toy_world import SquareEnvironment, toy_task, trajectory
from trainers.config import ConfigError
from trainers.protocol import Collected, EpisodeSpec, Group, GroupSpec, Played
from trainers.rollouts.collection import collect, play_all, play_groups
from trainers.rollouts.task_sampler import TaskSampler, select_categories


@dataclass
class ScriptedRunner:
    """Rewards by (group, member); raises or loses the episodes named in `troubles` once each."""

    troubles: dict[str, Exception] = field(default_factory=dict)
    played: list[EpisodeSpec] = field(default_factory=list)

    async def __call__(self, environment: Environment, spec: EpisodeSpec) -> list[Trajectory]:
        self.played.append(spec)
        await environment.reset(spec.task, spec.seed)
        await asyncio.sleep(0)
        trouble = self.troubles.pop(spec.episode_id, None)
        if trouble is not None:
            raise trouble
        member = int(spec.episode_id.split("-")[1].split(".")[0])
        return [
            trajectory(
                float(member % 2),
                group_id=spec.group_id,
                episode_id=spec.episode_id,
                seed=spec.seed,
            )
        ]


def group_specs(count: int) -> list[GroupSpec]:
    return [GroupSpec(toy_task(), 100 + index, f"g{index}") for index in range(count)]


def play(runner: ScriptedRunner, size: int, groups: int = 3, retries: int = 2) -> tuple[list[Group], list[str]]:
    async def factory() -> Environment:
        return SquareEnvironment()

    async def scenario() -> tuple[list[Group], list[str]]:
        async with EnvironmentPool(factory, size) as pool:
            return await play_groups(pool, runner, group_specs(groups), group_size=4, retries=retries)

    return asyncio.run(scenario())


def test_a_group_shares_task_and_seed_and_keeps_its_order() -> None:
    groups, lost = play(ScriptedRunner(), size=5)
    assert lost == []
    for spec, group in zip(group_specs(3), groups, strict=True):
        assert [episode[0].seed for episode in group.episodes] == [spec.seed] * 4
        assert [episode[0].episode_id for episode in group.episodes] == [f"{spec.group_id}-{m}" for m in range(4)]


def test_concurrency_does_not_change_what_is_played() -> None:
    def played(size: int) -> list[tuple[str, int, str]]:
        runner = ScriptedRunner()
        play(runner, size)
        return sorted((spec.task.id, spec.seed, spec.episode_id) for spec in runner.played)

    assert played(1) == played(3) == played(64)


def test_concurrency_one_is_one_after_the_other() -> None:
    runner = ScriptedRunner()
    play(runner, size=1)
    assert [spec.episode_id for spec in runner.played] == [f"g{g}-{m}" for g in range(3) for m in range(4)]


@pytest.mark.parametrize("trouble", [EnvironmentFailure("dead"), InferenceFailure("timeout")])
def test_a_lost_episode_is_replaced_and_counted(trouble: Exception) -> None:
    runner = ScriptedRunner({"g1-2": trouble})
    groups, lost = play(runner, size=4)
    assert len(lost) == 1
    assert lost[0].startswith("g1-2 (tap): ")
    assert [len(group.episodes) for group in groups] == [4, 4, 4]
    assert groups[1].episodes[2][0].episode_id == "g1-2.1"
    assert groups[1].episodes[2][0].reward == 0.0


def test_an_episode_that_cannot_be_saved_leaves_its_group() -> None:
    names = ["g0-3", "g0-3.1", "g0-3.2"]
    groups, lost = play(ScriptedRunner({name: EnvironmentFailure("dead") for name in names}), size=4)
    assert len(lost) == 3
    assert [len(group.episodes) for group in groups] == [3, 4, 4]


def test_an_unexpected_error_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        play(ScriptedRunner({"g1-0": ZeroDivisionError()}), size=4)


def test_progress_is_reported_for_every_episode() -> None:
    calls: list[tuple[int, int]] = []

    async def factory() -> Environment:
        return SquareEnvironment()

    async def scenario() -> list[Played]:
        specs = [EpisodeSpec(toy_task(), index, f"g{index}", f"g{index}-0") for index in range(3)]
        return await play_all(
            EnvironmentPool(factory, 2), ScriptedRunner(), specs, 0, lambda done, total: calls.append((done, total))
        )

    asyncio.run(scenario())
    assert calls == [(1, 3), (2, 3), (3, 3)]


def run_collect(signals: Sequence[bool], wanted: int, max_refills: int) -> tuple[Collected, list[int]]:
    """Collect when the n-th group drawn has signal according to `signals[n]`."""
    sampler = TaskSampler([toy_task()], seed=0)
    rounds: list[int] = []

    async def play_round(specs: Sequence[GroupSpec]) -> tuple[list[Group], list[str]]:
        rounds.append(len(specs))
        return [Group(spec, []) for spec in specs], ["lost"]

    def has_signal(group: Group) -> bool:
        index = int(group.spec.group_id[1:])
        return signals[index]

    collected = Collected()
    asyncio.run(collect(play_round, sampler.next, has_signal, wanted, max_refills, collected))
    return collected, rounds


def test_refill_plays_only_what_is_missing() -> None:
    collected, rounds = run_collect([True, False, False, True, False, True, True], wanted=4, max_refills=2)
    assert rounds == [4, 2, 1]
    assert [group.spec.group_id for group in collected.kept] == ["g000000", "g000003", "g000005", "g000006"]
    assert len(collected.filtered) == 3
    assert len(collected.lost) == 3


def test_no_refill_when_the_first_round_is_enough() -> None:
    assert run_collect([True] * 4, wanted=4, max_refills=2)[1] == [4]


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 8), st.integers(0, 4))
def test_collect_is_bounded(signals: list[bool], wanted: int, max_refills: int) -> None:
    collected, rounds = run_collect(signals, wanted, max_refills)
    assert len(rounds) <= max_refills + 1
    assert len(collected.kept) <= wanted
    assert len(collected.kept) == wanted or len(rounds) == max_refills + 1
    assert len(collected.kept) + len(collected.filtered) == sum(rounds)


TASKS = [
    toy_task(f"{category}{index}", category) for category, n in (("a", 1), ("b", 3), ("c", 2)) for index in range(n)
]


def test_categories_and_their_tasks_are_balanced() -> None:
    specs = TaskSampler(TASKS, seed=3).next(18)
    counts = {task.id: sum(spec.task.id == task.id for spec in specs) for task in TASKS}
    assert counts == {"a0": 6, "b0": 2, "b1": 2, "b2": 2, "c0": 3, "c1": 3}


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 1_000))
def test_position_is_all_of_the_samplers_state(first: int, second: int, seed: int) -> None:
    whole = TaskSampler(TASKS, seed).next(first + second)
    resumed = TaskSampler(TASKS, seed, position=first).next(second)
    assert whole[first:] == resumed


def test_worlds_of_runs_are_disjoint_training_seeds() -> None:
    seen = [{spec.seed for spec in TaskSampler(TASKS, seed).next(50)} for seed in range(3)]
    assert len(set.union(*seen)) == 150
    assert all(seed_for("train", 0) <= seed < seed_for("eval", 0) for seeds in seen for seed in seeds)


def test_run_seeds_change_the_order() -> None:
    def order(seed: int) -> list[str]:
        return [spec.task.id for spec in TaskSampler(TASKS, seed).next(12)]

    assert order(0) != order(1)


def test_an_unknown_category_is_named() -> None:
    assert [task.id for task in select_categories(TASKS, ["c"])] == ["c0", "c1"]
    with pytest.raises(ConfigError, match=r"env.tasks='d' is not a category; allowed: a, b, c"):
        select_categories(TASKS, ["d"])
