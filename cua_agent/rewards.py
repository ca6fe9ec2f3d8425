"""How an episode ended and what that is worth; pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cua_agent.tasks import CUATask
from cua_agent.trajectory import Outcome, Turn

GOAL_REACHED = 1.0
"""Score from which the goal counts as reached; partial scores do not."""

RewardFunction = Callable[[Outcome, float, Sequence[Turn], CUATask], float]
"""A reward of one's own: of the outcome, the score (0..1), the turns (`Turn.action` is None for a malformed call), and
the task. It may run in any process and in any order, so it keeps nothing between calls."""


class RewardError(ValueError):
    """A score or a reward that is no finite number, or a reward function that fails; the message is one line."""


class RewardValues(Protocol):
    """What each outcome is worth, and what it costs to get there."""

    @property
    def success(self) -> float:
        """The goal holds."""
        ...

    @property
    def false_claim(self) -> float:
        """Reported as done, and it is not."""
        ...

    @property
    def failure(self) -> float:
        """The world ended the episode without success."""
        ...

    @property
    def out_of_turns(self) -> float:
        """No report in the turns that there were."""
        ...

    @property
    def partial(self) -> float:
        """Added without success, times the degree to which the goal holds."""
        ...

    @property
    def turn_cost(self) -> float:
        """Subtracted for every turn."""
        ...

    @property
    def minute_cost(self) -> float:
        """Subtracted for every minute of sampling and acting."""
        ...

    @property
    def malformed_cost(self) -> float:
        """Subtracted for every turn that was no legal call."""
        ...

    @property
    def side_effect_cost(self) -> float:
        """Subtracted for everything that the episode changed and should not have, where the world can tell."""
        ...

    @property
    def overlong_cost(self) -> float:
        """Subtracted from an episode of `overlong_after` + `overlong_turns` turns or more, in part from one of more
        than `overlong_after`."""
        ...

    @property
    def overlong_after(self) -> int:
        """Turns that cost nothing."""
        ...

    @property
    def overlong_turns(self) -> int:
        """Turns over which the cost grows."""
        ...

    @property
    def custom(self) -> RewardFunction | None:
        """What decides instead of all these."""
        ...


@dataclass(frozen=True)
class SuccessOnly:
    """1 for success, 0 for everything else."""

    success: float = 1.0
    false_claim: float = 0.0
    failure: float = 0.0
    out_of_turns: float = 0.0
    partial: float = 0.0
    turn_cost: float = 0.0
    minute_cost: float = 0.0
    malformed_cost: float = 0.0
    side_effect_cost: float = 0.0
    overlong_cost: float = 0.0
    overlong_after: int = 8
    overlong_turns: int = 4
    custom: RewardFunction | None = None


def checked_score(score: float, task: CUATask) -> float:
    """`score` of a world, within 0..1. Raises `RewardError` for what is no number."""
    if not isinstance(score, int | float) or math.isnan(score):
        raise RewardError(f"task {task.id}: the world scores it {score!r:.60}; allowed: 0 to 1")
    return min(max(float(score), 0.0), GOAL_REACHED)


def outcome_of(score: float, *, claimed: bool, world_done: bool) -> Outcome:
    """How an episode ended whose goal holds to the degree `score` (0..1).

    `claimed`: the agent reported completion. `world_done`: the environment ended the episode by itself. With neither
    the episode is out of turns, even if the goal holds: on a phone, knowing that one is done is part of the task.
    """
    reached = score >= GOAL_REACHED
    if claimed:
        return Outcome.SUCCESS if reached else Outcome.FALSE_CLAIM
    if world_done:
        return Outcome.SUCCESS if reached else Outcome.FAILURE
    return Outcome.OUT_OF_TURNS


def reward_of(
    outcome: Outcome, score: float, values: RewardValues, turns: Sequence[Turn], task: CUATask, side_effects: int = 0
) -> float:
    """The reward of an episode of `task`; 0 for a lost one, which no advantage ever sees.

    It is `values.custom`'s, if there is one. Else it is `values.success` for a success, or the outcome's value plus
    `values.partial` times `score` (0..1), and costs are subtracted: at most half of what a success is above the best
    that there is without one, so that a dear success is worth more than a cheap failure.

    Raises `RewardError`.
    """
    if outcome is Outcome.INFRA_ERROR:
        return 0.0
    if values.custom is not None:
        return _custom_reward(values.custom, outcome, score, turns, task)
    return _worth(outcome, score, values) - min(_costs(values, turns, side_effects), _most_costs(values))


def turn_rewards(values: RewardValues, turns: Sequence[Turn], side_effects: int = 0) -> list[float]:
    """What each turn brought by itself: less its own costs, as far as `reward_of` subtracts them. What is left of the
    episode's reward came with its last turn, and all of that of a `custom` one."""
    if values.custom is not None:
        return [0.0] * len(turns)
    whole = _costs(values, turns, side_effects)
    counted = min(whole, _most_costs(values)) / whole if whole else 0.0
    return [-counted * _costs(values, [turn], 0) for turn in turns]


def reward_parts(
    outcome: Outcome, score: float, values: RewardValues, turns: Sequence[Turn], side_effects: int, reward: float
) -> dict[str, float]:
    """What `reward` (of `reward_of`) is the sum of: the outcome's value, the share of the goal, each cost, and `limit`,
    what of the costs was not subtracted. Parts of 0 are left out, but for the outcome's."""
    if outcome is Outcome.INFRA_ERROR:
        return {}
    if values.custom is not None:
        return {"reward.function": reward}
    share = 0.0 if outcome is Outcome.SUCCESS else values.partial * score
    costs = _cost_parts(values, turns, side_effects)
    parts = {"partial": share, **{name: -cost for name, cost in costs.items()}}
    worth = _worth(outcome, score, values)
    parts["limit"] = reward - (worth - sum(costs.values()))
    return {outcome.value: worth - share, **{name: part for name, part in parts.items() if abs(part) > 1e-9}}


def best_without_success(values: RewardValues) -> float:
    """The most that an episode can be worth whose goal is not reached, or not reported."""
    return max(values.false_claim, values.failure, values.out_of_turns) + values.partial


def _worth(outcome: Outcome, score: float, values: RewardValues) -> float:
    if outcome is Outcome.SUCCESS:
        return values.success
    without = {
        Outcome.FALSE_CLAIM: values.false_claim,
        Outcome.FAILURE: values.failure,
        Outcome.OUT_OF_TURNS: values.out_of_turns,
    }
    return without[outcome] + values.partial * score


def _most_costs(values: RewardValues) -> float:
    return max(0.0, values.success - best_without_success(values)) / 2


def _costs(values: RewardValues, turns: Sequence[Turn], side_effects: int) -> float:
    return sum(_cost_parts(values, turns, side_effects).values())


def _cost_parts(values: RewardValues, turns: Sequence[Turn], side_effects: int) -> dict[str, float]:
    minutes = sum(turn.generate_s + turn.env_s for turn in turns) / 60
    malformed = sum(turn.action is None for turn in turns)
    return {
        "turn_cost": values.turn_cost * len(turns),
        "minute_cost": values.minute_cost * minutes,
        "malformed_cost": values.malformed_cost * malformed,
        "side_effect_cost": values.side_effect_cost * side_effects,
        "overlong_cost": values.overlong_cost * overlong(len(turns), values.overlong_after, values.overlong_turns),
    }


def overlong(turns: int, after: int, over: int) -> float:
    """How far too long an episode is, 0 to 1: 0 up to `after` turns, 1 from `after` + `over` on, linear between. The
    soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), in turns instead of tokens."""
    return min(max((turns - after) / over, 0.0), 1.0)


def _custom_reward(
    function: RewardFunction, outcome: Outcome, score: float, turns: Sequence[Turn], task: CUATask
) -> float:
    try:
        reward = float(function(outcome, score, tuple(turns), task))
    except Exception as error:
        raise RewardError(f"reward.function, task {task.id}: {type(error).__name__}: {error}") from error
    if not math.isfinite(reward):
        raise RewardError(f"reward.function, task {task.id}: it gives {reward}; allowed: a finite number")
    return reward
