import math

import pytest

from cua_agent.tasks import seed_for
from cua_agent.trajectory import Outcome
from tests.toy_world import toy_task, trajectory
from trainers.protocol import EpisodeSpec, Played
from trainers.rollouts.evaluation import evaluation_episodes, score

TASKS = [toy_task("a0", "a"), toy_task("b0", "b"), toy_task("b1", "b")]


def test_episodes_are_fixed_and_on_evaluation_seeds() -> None:
    specs = evaluation_episodes(TASKS, 6)
    assert specs == evaluation_episodes(TASKS, 6)
    assert [spec.seed for spec in specs] == [seed_for("eval", index) for index in range(6)]
    assert [spec.task.id for spec in specs] == ["a0", "b0", "a0", "b1", "a0", "b0"]
    assert len({spec.episode_id for spec in specs}) == 6


def test_more_episodes_begin_with_the_same_ones() -> None:
    assert evaluation_episodes(TASKS, 10)[:4] == evaluation_episodes(TASKS, 4)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        evaluation_episodes([], 3)


def played(reward: float, turns: int, lost: int = 0) -> Played:
    return Played([trajectory(reward, turns=turns)], ("dead",) * lost)


def test_score_by_hand() -> None:
    specs = evaluation_episodes(TASKS, 5)
    results = [played(1.0, 2), played(0.0, 4), played(1.0, 3, lost=1), played(1.0, 1), Played(None, ("dead", "dead"))]
    record = score(specs, results, step=7)
    assert record.step == 7
    assert record.episodes == 4
    assert record.success_rate == 0.75
    assert record.reward_mean == 0.75
    assert record.turns_mean == 2.5
    assert record.by_category == {"a": (2, 2), "b": (1, 2)}
    assert record.infra_errors == 3


def test_success_is_the_outcome_not_the_reward() -> None:
    specs = [EpisodeSpec(toy_task(), 0, "g", "e")]
    rows = [trajectory(0.9, outcome=Outcome.OUT_OF_TURNS)]
    assert score(specs, [Played(rows)], step=0).success_rate == 0.0


def test_turns_of_all_rows_of_an_episode_count() -> None:
    specs = [EpisodeSpec(toy_task(), 0, "g", "e")]
    rows = [trajectory(1.0, turns=2), trajectory(1.0, turns=1)]
    record = score(specs, [Played(rows)], step=0)
    assert (record.episodes, record.turns_mean) == (1, 3.0)


def test_all_lost_is_not_a_number() -> None:
    record = score([EpisodeSpec(toy_task(), 0, "g", "e")], [Played(None, ("dead",))], step=0)
    assert record.episodes == 0
    assert math.isnan(record.success_rate)
