"""Outcomes and rewards."""

from dataclasses import dataclass

import pytest

from cua_agent.rewards import SuccessOnly, outcome_of, reward_of
from cua_agent.trajectory import Outcome
from trainers.config import ConfigError, RewardConfig, from_mapping


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
    partial: float = 0.0


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
    assert reward_of(outcome, score, values) == pytest.approx(reward)


def test_half_done_members_of_a_group_differ_only_when_configured() -> None:
    scores = [0.25, 0.5, 0.75]
    assert {reward_of(Outcome.FAILURE, score, RewardConfig()) for score in scores} == {0.0}
    assert [reward_of(Outcome.FAILURE, score, RewardConfig(partial=0.5)) for score in scores] == [0.125, 0.25, 0.375]


def test_no_success_is_never_worth_a_success() -> None:
    reward: dict[str, object] = {"success": 0.4, "partial": 0.4}
    with pytest.raises(
        ConfigError, match=r"reward: partial=0\.4 makes up to 0\.4 of no success; allowed: below success"
    ):
        from_mapping({"reward": reward})
    with pytest.raises(ConfigError, match=r"reward\.partial=0\.6: must be less than or equal to 0\.5"):
        from_mapping({"reward": {"partial": 0.6}})
    assert from_mapping({"reward": {"success": 0.0, "failure": 0.5}}).reward.partial == 0  # as anybody likes without
