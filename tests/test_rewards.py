"""Outcomes and rewards."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.rewards import (
    RewardError,
    RewardValues,
    SuccessOnly,
    checked_score,
    outcome_of,
    reward_of,
    turn_rewards,
)
from cua_agent.tasks import CUATask
from cua_agent.trajectory import Outcome, Turn
from tests.toy_world import toy_task, trajectory
from trainers.areal.tensors import carries_signal
from trainers.config import AdvantageConfig, ConfigError, RewardConfig, from_mapping
from trainers.grpo.advantages import has_signal


@pytest.mark.parametrize(
    ("score", "claimed", "world_done", "outcome"),
    [
        (1.0, True, False, Outcome.SUCCESS),
        (0.0, True, False, Outcome.FALSE_CLAIM),
        (0.9, True, False, Outcome.FALSE_CLAIM),
        (1.0, False, True, Outcome.SUCCESS),
        (0.5, False, True, Outcome.FAILURE),
        (0.0, False, True, Outcome.FAILURE),
        (1.0, False, False, Outcome.OUT_OF_TURNS),
        (0.0, False, False, Outcome.OUT_OF_TURNS),
    ],
)
def test_outcomes(score: float, claimed: bool, world_done: bool, outcome: Outcome) -> None:
    assert outcome_of(score, claimed=claimed, world_done=world_done) is outcome


CUSTOM = RewardConfig(success=2.0, false_claim=-1.0, failure=-0.5, out_of_turns=-0.25)
TASK = toy_task()


def worth(outcome: Outcome, score: float, values: RewardValues, *turns: Turn, side_effects: int = 0) -> float:
    return reward_of(outcome, score, values, turns, TASK, side_effects)


def turn(action: str | None = "tap", generate_s: float = 0.0, env_s: float = 0.0) -> Turn:
    return Turn("", action, "", generate_s, env_s)


@pytest.mark.parametrize(
    ("outcome", "score", "default", "custom"),
    [
        (Outcome.SUCCESS, 1.0, 1.0, 2.0),
        (Outcome.FALSE_CLAIM, 0.9, 0.0, -1.0),
        (Outcome.FAILURE, 0.5, 0.0, -0.5),
        (Outcome.OUT_OF_TURNS, 1.0, 0.0, -0.25),
        (Outcome.INFRA_ERROR, 1.0, 0.0, 0.0),
    ],
)
def test_rewards(outcome: Outcome, score: float, default: float, custom: float) -> None:
    assert worth(outcome, score, SuccessOnly()) == default
    assert worth(outcome, score, CUSTOM) == custom


@pytest.mark.parametrize(
    ("outcome", "score", "reward"),
    [
        (Outcome.SUCCESS, 1.0, 1.0),
        (Outcome.FALSE_CLAIM, 0.5, 0.1),  # -0.1 + 0.4 * 0.5
        (Outcome.FAILURE, 0.25, 0.1),
        (Outcome.OUT_OF_TURNS, 1.0, 0.4),  # the goal holds, and was not reported
        (Outcome.FAILURE, 0.0, 0.0),
        (Outcome.INFRA_ERROR, 0.5, 0.0),
    ],
)
def test_partial_scores_are_worth_what_is_configured(outcome: Outcome, score: float, reward: float) -> None:
    values = RewardConfig(false_claim=-0.1, partial=0.4)
    assert worth(outcome, score, values) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("keys", "turns", "side_effects", "reward"),
    [
        ({"turn_cost": 0.02}, [turn(), turn(), turn()], 0, 0.94),
        ({"minute_cost": 0.1}, [turn(generate_s=30.0, env_s=15.0), turn(env_s=15.0)], 0, 0.9),  # one minute
        ({"malformed_cost": 0.05}, [turn(None), turn(), turn(None)], 0, 0.9),
        ({"side_effect_cost": 0.1}, [turn()], 3, 0.7),
        ({"turn_cost": 0.1, "malformed_cost": 0.1}, [turn(None), turn()], 0, 0.7),
        ({"overlong_cost": 0.2, "overlong_after": 2, "overlong_turns": 4}, [turn()] * 3, 0, 0.95),
        ({"overlong_cost": 0.2, "overlong_after": 2, "overlong_turns": 4}, [turn()] * 9, 0, 0.8),
        ({"overlong_cost": 0.2, "overlong_after": 2}, [turn()] * 2, 0, 1.0),
        ({"turn_cost": 1.0}, [turn(), turn()], 0, 0.5),  # no more than half of what a success is above a failure
        ({"turn_cost": 1.0, "partial": 0.5}, [turn()], 0, 0.75),
    ],
)
def test_costs_are_subtracted(keys: dict[str, float], turns: list[Turn], side_effects: int, reward: float) -> None:
    values = RewardConfig(**keys)
    assert worth(Outcome.SUCCESS, 1.0, values, *turns, side_effects=side_effects) == pytest.approx(reward)
    failed = worth(Outcome.FAILURE, 0.0, values, *turns, side_effects=side_effects)
    assert failed == pytest.approx(reward - 1.0)
    assert worth(Outcome.INFRA_ERROR, 0.0, values, *turns, side_effects=side_effects) == 0.0


COST = st.floats(0, 10)
SCORE = st.floats(0, 1)
TURNS = st.lists(st.builds(turn, st.sampled_from([None, "tap"]), SCORE, SCORE), max_size=12)


@given(st.floats(0, 0.5), st.tuples(COST, COST, COST, COST, COST), st.tuples(TURNS, TURNS), SCORE, st.integers(0, 9))
def test_a_success_is_worth_more_than_anything_else_whatever_it_costs(
    partial: float,
    costs: tuple[float, float, float, float, float],
    turns: tuple[list[Turn], list[Turn]],
    score: float,
    effects: int,
) -> None:
    names = ("turn_cost", "minute_cost", "malformed_cost", "side_effect_cost", "overlong_cost")
    values = RewardConfig(partial=partial, **dict(zip(names, costs, strict=True)))
    success = worth(Outcome.SUCCESS, 1.0, values, *turns[0], side_effects=effects)
    for outcome in (Outcome.FAILURE, Outcome.FALSE_CLAIM, Outcome.OUT_OF_TURNS):
        assert success > worth(outcome, score, values, *turns[1])


def test_each_turn_has_its_own_costs_as_far_as_they_count() -> None:
    values = RewardConfig(turn_cost=0.1, malformed_cost=0.2, side_effect_cost=0.1, minute_cost=0.6)
    turns = [turn(), turn(action=None), turn(generate_s=5.0, env_s=5.0)]
    assert turn_rewards(values, turns) == pytest.approx(
        [-0.5 / 6, -1.5 / 6, -1 / 6]
    )  # 0.1, 0.3 and 0.2: 0.5 of 0.6 counts
    assert sum(turn_rewards(values, turns)) == pytest.approx(worth(Outcome.SUCCESS, 1.0, values, *turns) - 1)
    with_effects = turn_rewards(values, turns, side_effects=4)  # 1.0 in all: half of it counts
    assert with_effects == pytest.approx([-0.05, -0.15, -0.1])
    assert turn_rewards(SuccessOnly(), turns) == [0, 0, 0]
    assert turn_rewards(RewardConfig(function=f"{__name__}:by_turns"), turns) == [0, 0, 0]


# A reward of one's own.


def by_turns(outcome: Outcome, score: float, turns: Sequence[Turn], task: CUATask) -> float:
    return (outcome is Outcome.SUCCESS) + score + 10 * len(turns) + len(task.id)


def broken(outcome: Outcome, score: float, turns: Sequence[Turn], task: CUATask) -> float:
    return 1 / 0


def endless(*arguments: object) -> float:
    return float("nan")


def of_two(outcome: Outcome, score: float) -> float:
    return score


def test_a_function_of_ones_own_decides_alone() -> None:
    values = from_mapping({"reward": {"function": f"{__name__}:by_turns"}}).reward
    assert worth(Outcome.FAILURE, 0.5, values, turn(), turn()) == 0.5 + 20 + len(TASK.id)
    assert worth(Outcome.SUCCESS, 1.0, values) == 2 + len(TASK.id)
    assert worth(Outcome.INFRA_ERROR, 1.0, values) == 0.0


def test_a_function_that_fails_or_gives_no_number_says_so() -> None:
    for name, words in (("broken", "ZeroDivisionError: division by zero"), ("endless", "gives nan")):
        values = RewardConfig(function=f"{__name__}:{name}")
        with pytest.raises(RewardError, match=f"reward.function, task tap: .*{words}"):
            worth(Outcome.FAILURE, 0.5, values)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"function": "no_such_module:f"}, ["reward.function=no_such_module:f", "there is no module no_such_module"]),
        ({"function": f"{__name__}:nothing"}, ["has no nothing"]),
        ({"function": f"{__name__}:of_two"}, ["allowed: a function (outcome, score, turns, task)"]),
        ({"function": f"{__name__}:TASK"}, ["allowed: a function (outcome, score, turns, task)"]),
        ({"function": "reward.py"}, ["allowed: package.module:name"]),
        ({"function": f"{__name__}:by_turns", "partial": 0.5}, ["reward", "partial=0.5 with function="]),
        ({"success": 0.0, "turn_cost": 0.1}, ["turn_cost=0.1 with success=0", "a success above 0"]),
        ({"turn_cost": -0.1}, ["reward.turn_cost=-0.1", "greater than or equal to 0"]),
    ],
)
def test_rewards_that_cannot_be_meant_are_one_line(keys: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"reward": keys})
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", [float("nan"), None, "1"])
def test_a_score_that_is_no_number_is_an_error_of_the_world(score: Any) -> None:
    with pytest.raises(RewardError, match=r"task tap: the world scores it .*; allowed: 0 to 1"):
        checked_score(score, TASK)
    assert (checked_score(2, TASK), checked_score(-1.0, TASK), checked_score(True, TASK)) == (1.0, 0.0, 1.0)


# Groups.


def test_groups_of_partial_scores_carry_signal_on_both_backends_and_only_where_they_are_worth_something() -> None:
    scores = [0.25, 0.5, 0.75]
    for values, signal in ((RewardConfig(), False), (RewardConfig(partial=0.5), True)):
        rewards = [worth(Outcome.FAILURE, score, values) for score in scores]
        rows = [trajectory(reward, episode_id=f"e{i}") for i, reward in enumerate(rewards)]
        tensors = {"rewards": torch.tensor(rewards), "episode": torch.arange(len(rewards))}
        assert has_signal(rows, AdvantageConfig()) == carries_signal(tensors, AdvantageConfig()) == signal


def test_half_done_members_of_a_group_differ_only_when_configured() -> None:
    scores = [0.25, 0.5, 0.75]
    assert {worth(Outcome.FAILURE, score, RewardConfig()) for score in scores} == {0.0}
    assert [worth(Outcome.FAILURE, score, RewardConfig(partial=0.5)) for score in scores] == [0.125, 0.25, 0.375]


def test_no_success_is_never_worth_a_success() -> None:
    reward: dict[str, object] = {"success": 0.4, "partial": 0.4}
    with pytest.raises(
        ConfigError, match=r"reward: partial=0\.4 makes up to 0\.4 of no success; allowed: below success"
    ):
        from_mapping({"reward": reward})
    with pytest.raises(ConfigError, match=r"reward\.partial=0\.6: must be less than or equal to 0\.5"):
        from_mapping({"reward": {"partial": 0.6}})
    assert from_mapping({"reward": {"success": 0.0, "failure": 0.5}}).reward.partial == 0  # as anybody likes without
