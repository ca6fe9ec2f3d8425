"""How an episode ended and what that is worth; pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cua_agent.trajectory import Outcome

GOAL_REACHED = 1.0
"""Score from which the goal counts as reached; partial scores do not."""


class RewardValues(Protocol):
    """What each outcome is worth."""

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


@dataclass(frozen=True)
class SuccessOnly:
    """1 for success, 0 for everything else."""

    success: float = 1.0
    false_claim: float = 0.0
    failure: float = 0.0
    out_of_turns: float = 0.0
    partial: float = 0.0


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


def reward_of(outcome: Outcome, score: float, values: RewardValues) -> float:
    """The episode's reward: `values.success` for a success, else the outcome's value plus `values.partial` times the
    degree `score` (0..1) to which the goal holds.

    Lost episodes get 0, which no advantage ever sees.
    """
    match outcome:
        case Outcome.SUCCESS:
            return values.success
        case Outcome.FALSE_CLAIM:
            worth = values.false_claim
        case Outcome.FAILURE:
            worth = values.failure
        case Outcome.OUT_OF_TURNS:
            worth = values.out_of_turns
        case Outcome.INFRA_ERROR:
            return 0.0
    return worth + values.partial * min(max(score, 0.0), GOAL_REACHED)
