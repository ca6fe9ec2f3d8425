"""Outcomes and rewards."""

from dataclasses import dataclass

import pytest

from cua_agent.rewards import SuccessOnly, outcome_of, reward_of
from cua_agent.trajectory import Outcome


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


@dataclass(frozen=True)
class Custom:
    success: float = 2.0
    false_claim: float = -1.0
    failure: float = -0.5
    out_of_turns: float = -0.25


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
    assert reward_of(outcome, score, SuccessOnly()) == default
    assert reward_of(outcome, score, Custom()) == custom
