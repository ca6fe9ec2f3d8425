"""Branches of episodes, and the credit that they tell."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.actions import Point, ReportTaskComplete, Tap, Target
from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.conversation import Context, Conversation, EpisodeInfo
from cua_agent.envs.base import Environment
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import open_world
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.parsing import render_tool_call
from cua_agent.tasks import get_training_tasks
from cua_agent.trail import Trail
from cua_agent.trajectory import Fork, Outcome, Trajectory
from cua_agent.verdict import Verdict
from tests.agent_fakes import ByteCodec, pixels, response
from tests.toy_world import trajectory
from trainers.config import AdvantageConfig, ConfigError
from trainers.config.compose import load_config
from trainers.grpo.advantages import group_advantages
from trainers.grpo.forking import stretch_values
from trainers.protocol import Batch, Episode, EpisodeSpec, Group, GroupSpec
from trainers.rollouts.branching import branch_point
from trainers.rollouts.collection import play_groups
from trainers.rollouts.trajectory_store import decode_batch, encode_batch

CODEC = ByteCodec()
INFO = EpisodeInfo(1.0, Outcome.SUCCESS, "task", "group", "episode", 3)
CREDIT = AdvantageConfig(credit="fork", normalise_by_std=False)
REWARDS = {"a": 1.0, "b": 0.0, "x": 0.0, "y": 1.0, "z": 0.0}
FORKS = {name: Fork("a", 2) for name in "xyz"}


def row(name: str, reward: float, turns: int, fork: Fork | None = None) -> Trajectory:
    """An episode of so many turns of its own: a prompt token and a sampled one each."""
    made = trajectory(reward, episode_id=name, ids=range(2 * turns), turns=turns)
    return replace(made, loss_mask=np.array([0, 1] * turns, np.int32), fork=fork)


ROWS = [row("a", 1.0, 4), row("b", 0.0, 1), *(row(name, REWARDS[name], 2, fork) for name, fork in FORKS.items())]


def test_a_stretch_is_worth_the_difference_of_the_values_at_its_ends_by_hand() -> None:
    # At turn 2 of a: a 1, x 0, y 1, z 0 -> 1/2. At the start: a's way there 1/2, b 0 -> 1/4.
    assert stretch_values(REWARDS, FORKS, CREDIT) == {
        "a": [(0, 0.25), (2, 0.5)], "b": [(0, -0.25)], "x": [(0, -0.5)], "y": [(0, 0.5)], "z": [(0, -0.5)]
    }  # fmt: skip
    others = stretch_values(REWARDS, FORKS, replace(CREDIT, baseline="leave_one_out"))
    assert others["a"] == [(0, 0.5 - 0.0), (2, pytest.approx(1 - 1 / 3))] and others["x"] == [
        (0, pytest.approx(-2 / 3))
    ]


def test_an_episode_may_be_branched_off_twice_and_a_branch_may_have_lost_what_it_came_from() -> None:
    # a, b from the start; x off a at turn 3, y off a at turn 1. At 3: a 1, x 0 -> 1/2; at 1: 1/2, y 0 -> 1/4; b 0.
    twice = stretch_values({"a": 1.0, "b": 0.0, "x": 0.0, "y": 0.0}, {"x": Fork("a", 3), "y": Fork("a", 1)}, CREDIT)
    assert twice["a"] == [(0, 0.125), (1, 0.25), (3, 0.5)]
    assert (twice["b"], twice["x"], twice["y"]) == ([(0, -0.125)], [(0, -0.5)], [(0, -0.25)])
    orphans = stretch_values({"b": 0.0, "x": 0.0, "y": 1.0}, {name: Fork("a", 2) for name in "xy"}, CREDIT)
    assert orphans == {"b": [(0, 0.0)], "x": [(0, -0.5)], "y": [(0, 0.5)]}


def test_turns_get_what_their_stretch_is_worth_in_deviations_of_the_group() -> None:
    def total(config: AdvantageConfig) -> list[list[float]]:
        batch = group_advantages(ROWS, config).batch
        return [
            [advantage + step for step in steps]
            for advantage, steps in zip(batch.advantages, batch.steps, strict=False)
        ]

    worth = [[0.25, 0.25, 0.5, 0.5], [-0.25], [-0.5, -0.5], [0.5, 0.5], [-0.5, -0.5]]
    assert total(CREDIT) == [pytest.approx(each) for each in worth]
    std = float(np.std(list(REWARDS.values())))
    deviations = total(replace(CREDIT, normalise_by_std=True))
    assert deviations == [pytest.approx([value / std for value in each]) for each in worth]
    nothing = total(replace(CREDIT, step_weight=0.0))
    assert nothing == [pytest.approx([REWARDS[each.episode_id] - 0.4] * len(each.turns)) for each in ROWS]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=5),
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 3)), max_size=5),
)
def test_worths_cancel_at_every_point_and_add_up_along_every_episode(
    rewards: list[float], branches: list[tuple[float, int]]
) -> None:
    episodes = {f"e{i}": reward for i, reward in enumerate(rewards)}
    forks = {f"b{i}": Fork("e0", turn) for i, (_, turn) in enumerate(branches)}
    episodes |= {f"b{i}": reward for i, (reward, _) in enumerate(branches)}
    found = stretch_values(episodes, forks, CREDIT)
    for turn in {fork.turn for fork in forks.values()}:
        branched = [worth for name, fork in forks.items() if fork.turn == turn for _, worth in found[name]]
        assert sum(branched) + dict(found["e0"])[turn] == pytest.approx(0)
    whole = episodes.keys() - forks.keys()
    assert sum(found[name][0][1] for name in whole) == pytest.approx(0)
    starts = [episodes[name] - sum(worth for _, worth in found[name]) for name in whole]  # the value of the start
    assert starts == pytest.approx([starts[0]] * len(starts))


@pytest.mark.parametrize("context", ["full", "last_k", "folded"])
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_branch_trains_its_own_turns_after_those_of_the_other(context: Context, turn: int) -> None:
    def spoken(conversation: Conversation, words: Sequence[str]) -> list[Trajectory]:
        for word in words:
            conversation.add_response(response(word))
            conversation.observe("", pixels(conversation.turns))
        return conversation.to_trajectories(INFO)

    conversation = Conversation(CODEC, "S", context, 2)
    conversation.start("goal", pixels(0))
    before = spoken(conversation, "abcd")
    branch = conversation.branch(turn)
    assert branch.turns == turn and branch.row == conversation._row(turn)
    rows = spoken(branch, "xyz"[: 4 - turn])
    straight = Conversation(CODEC, "S", context, 2)
    straight.start("goal", pixels(0))
    same = spoken(straight, "abcd"[:turn] + "xyz"[: 4 - turn])
    said = "".join(CODEC.decode(each.input_ids[each.loss_mask == 1].tolist()) for each in rows)
    assert said == "".join(f"{word}<|im_end|>" for word in "xyz"[: 4 - turn])
    assert sum(each.weight for each in rows) == pytest.approx(1)
    for mine, plain in zip(reversed(rows), reversed(same), strict=False):
        assert mine.input_ids.tolist() == plain.input_ids.tolist()
        assert [image[0, 0, 0] for image in mine.images] == [image[0, 0, 0] for image in plain.images]
    for kept, again in zip(before, conversation.to_trajectories(INFO), strict=True):  # the other is as it was
        assert kept.input_ids.tolist() == again.input_ids.tolist()


async def walked(phone: PocketEnvironment, actions: Sequence[Tap]) -> list[str | None]:
    return [(await phone.step(action)).observation.state for action in actions]


def test_a_phone_goes_on_from_a_snapshot_in_any_phone_and_any_number_of_times() -> None:
    task = get_training_tasks("pocket")[0]
    first, second = ([Tap(Point(x, 400)), Tap(Point(x, 800)), Tap(Point(500, 500))] for x in (200, 700))

    async def scenario() -> None:
        phone, other = PocketEnvironment(), PocketEnvironment()
        await phone.reset(task, 5)
        await walked(phone, first)
        kept = await phone.snapshot()
        state = phone.state.identity()
        ways = [await walked(phone, second), await phone.compute_reward()]
        for each in (other, phone):
            assert (await each.restore(task, kept)).state == state
            assert [await walked(each, second), await each.compute_reward()] == ways

    asyncio.run(scenario())


SAID = tuple(render_tool_call(Tap(Target(name))) for name in ("Settings", "Back", "Wi-Fi"))


class Wanderer:
    """An engine that says one of a few things, by the seed that it is given; reports are rare."""

    version = 3

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        done = request.seed % 7 == 0
        text = render_tool_call(ReportTaskComplete()) if done else SAID[request.seed % len(SAID)]
        ids = [*CODEC.encode(text), CODEC.special.end_of_turn_id]
        return GenerateResponse(ids, [-0.5] * len(ids), [self.version] * len(ids), "stop")

    def release(self, conversation_id: str) -> None: ...


def play_phones(branches: int, world: str = "pocket") -> list[Group]:
    config = load_config([f"env={world}"] if world == "pocket" else ["env=mix", "env.args.worlds={pocket:1}"])
    how = AgentConfig(max_length=50_000, keep_states=True)
    tasks = config.env.world.training_tasks()
    specs = [GroupSpec(tasks[i], 40 + i, f"g{i:06d}") for i in range(3)]

    async def run(environment: Environment, spec: EpisodeSpec) -> Episode:
        agent = StandaloneGBoxCUAAgent(CODEC, Wanderer(), environment, how)
        episode = await agent.play(
            spec.task, spec.seed, group_id=spec.group_id, episode_id=spec.episode_id, begin=spec.begin,
            leaves_trail=spec.leaves_trail,
        )  # fmt: skip
        assert episode.failure is None
        return episode.trajectories

    async def scenario() -> list[Group]:
        async with open_world(config.env.world, 60) as factory, EnvironmentPool(factory, 4) as pool:
            return (await play_groups(pool, run, specs, 6, retries=0, branches=branches))[0]

    return asyncio.run(scenario())


@pytest.mark.parametrize("world", ["pocket", "mix"])
def test_branches_go_on_where_an_episode_of_their_group_was(world: str) -> None:
    for group in play_phones(3, world):
        assert [len(group.episodes), len(group.branches), len(group.rows)] == [3, 3, 6]
        played = {episode[0].episode_id: episode[0] for episode in group.episodes}
        [fork] = {branch[0].fork for branch in group.branches}
        assert fork is not None
        trunk = played[fork.episode_id]
        assert trunk.reward == max(each.reward for each in played.values() if len(each.turns) > 1)
        assert 1 <= fork.turn < len(trunk.turns)
        begin = int(np.flatnonzero(np.diff(trunk.loss_mask) == 1)[fork.turn]) + 1  # where the trunk began that turn
        for (branch,) in group.branches:
            assert branch.input_ids[:begin].tolist() == trunk.input_ids[:begin].tolist()
            assert not branch.loss_mask[:begin].any() and branch.loss_mask[begin] == 1
            assert branch.turns[0].state == trunk.turns[fork.turn].state
            assert len(branch.turns) == (np.diff(branch.loss_mask) == 1).sum()
            assert fork.turn + len(branch.turns) <= group.spec.task.max_steps
        assert all(each.trail is None for each in group.rows)
        kept = decode_batch(encode_batch(Batch(group.rows, [0.0] * 6))).trajectories
        assert [each.fork for each in kept] == [None] * 3 + [fork] * 3


def test_without_branches_nothing_is_kept() -> None:
    assert all(row.fork is None and row.trail is None for group in play_phones(0) for row in group.rows)


def test_branches_begin_at_any_later_turn_of_the_best_and_at_the_start_where_there_is_none() -> None:
    def left(name: str, reward: float, turns: int) -> Episode:
        made = row(name, reward, max(turns, 1))
        trail = Trail(name, "", Conversation(CODEC, "S"), list(made.turns[:turns]), [None] * turns, Verdict())
        return [replace(made, trail=trail)]

    best = [left("short", 1.0, 1), left("good", 0.5, 4), left("bad", 0.0, 9)]
    found = [branch_point(best, f"g{i}") for i in range(60)]
    assert {point.fork for point in found if point is not None} == {Fork("good", turn) for turn in (1, 2, 3)}
    assert branch_point([left("short", 1.0, 1)], "g") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["env=miniwob"],
            "advantage.credit=fork with env.name=miniwob: it cannot be copied in the midst of an episode",
        ),
        (["env=mix", "env.args.worlds={pocket:1,miniwob:1}"], "advantage.credit=fork with env.name=mix: it cannot"),
        (["rollout.group_size=4"], "advantage.branches=4 with rollout.group_size=4: allowed: fewer"),
    ],
)
def test_what_cannot_be_branched_off_is_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_config(["advantage.credit=fork", *words])
    assert "\n" not in str(refused.value)
