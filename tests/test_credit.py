"""What turns add to their episode's advantage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.image_hash import image_hash
from cua_agent.trajectory import Outcome, Trajectory, Turn
from tests.toy_world import trajectory
from trainers.config import AdvantageConfig
from trainers.grpo.advantages import group_advantages
from trainers.grpo.credit import returns_to_go, step_advantages, token_steps, trained_turns, turn_numbers
from trainers.protocol import Batch

HALF = AdvantageConfig(credit="gigpo", discount=0.5, normalise_by_std=False)


def played(name: str, reward: float, states: str, group: str = "g") -> Trajectory:
    """An episode that was in `states` one after the other: a prompt token and two sampled ones a turn."""
    row = trajectory(reward, episode_id=name, group_id=group, ids=range(3 * len(states)))
    turns = tuple(Turn("", None, "", 0.0, 0.0, state=state) for state in states)
    return replace(row, loss_mask=np.array([0, 1, 1] * len(states), np.int32), turns=turns)


SIBLINGS = [played("a", 1.0, "xyz"), played("b", 0.0, "xy"), played("c", 1.0, "xw")]


def test_siblings_are_compared_where_they_met_by_hand() -> None:
    # Returns at a discount of 1/2: a 1/4, 1/2, 1; b 0, 0; c 1/2, 1. At x their mean is 1/4, at y (of a and b) 1/4.
    assert step_advantages(SIBLINGS, HALF) == [[0.0, 0.25, 0.0], [-0.25, -0.25], [0.25, 0.0]]
    assert step_advantages(SIBLINGS, replace(HALF, step_weight=2.0))[0] == [0.0, 0.5, 0.0]


def test_a_state_that_one_episode_comes_back_to_is_met_by_each_visit() -> None:
    # a is at x twice, with 1/4 and 1 to come; b once, with 0: mean 5/12.
    rows = [played("a", 1.0, "xyx"), played("b", 0.0, "x")]
    assert step_advantages(rows, HALF) == [pytest.approx([1 / 4 - 5 / 12, 0, 1 - 5 / 12]), pytest.approx([-5 / 12])]


def test_a_turns_own_reward_comes_with_it_and_the_rest_of_the_episodes_with_the_last() -> None:
    # a: -1, 0 and what is left of 1, which is 2; b: 0, 0. Returns at 1/2: -1/2, 1, 2 and 0, 0.
    costly = replace(SIBLINGS[0], turns=(replace(SIBLINGS[0].turns[0], reward=-1.0), *SIBLINGS[0].turns[1:]))
    assert step_advantages([costly, SIBLINGS[1]], HALF) == [[-0.25, 0.5, 0.0], [0.25, -0.5]]


def test_by_turn_the_siblings_of_the_same_number_are_compared() -> None:
    # Turn 1: 1/4, 0, 1/2. Turn 2: 1/2, 0, 1. Turn 3: a alone.
    assert step_advantages(SIBLINGS, replace(HALF, credit="turn")) == [[0, 0, 0], [-0.25, -0.5], [0.25, 0.5]]


def test_deviations_and_the_other_baseline_are_those_of_episodes() -> None:
    by_std = step_advantages(SIBLINGS, replace(HALF, normalise_by_std=True))
    assert by_std == [pytest.approx([0, 1, 0]), pytest.approx([-((3 / 2) ** 0.5), -1]), pytest.approx([1.5**0.5, 0])]
    others = step_advantages(SIBLINGS, replace(HALF, baseline="leave_one_out"))
    assert others[1] == pytest.approx([0 - 3 / 8, 0 - 1 / 2])


def test_groups_do_not_meet_and_rows_of_one_episode_go_on() -> None:
    assert step_advantages([played("a", 1.0, "x"), played("b", 0.0, "x", group="h")], HALF) == [[0.0], [0.0]]
    first, second, other = played("a", 1.0, "xy"), played("a", 1.0, "z"), played("b", 0.0, "xyz")
    assert step_advantages([first, other, second], HALF) == [[0.125, 0.25], [-0.125, -0.25, -0.5], [0.5]]


def test_a_lost_episode_is_not_compared_with_and_the_advantages_are_those_of_episodes_besides() -> None:
    lost = replace(played("d", 0.0, "x"), outcome=Outcome.INFRA_ERROR)
    batch = group_advantages([*SIBLINGS, lost], HALF).batch
    assert batch.advantages == group_advantages(SIBLINGS, AdvantageConfig(normalise_by_std=False)).batch.advantages
    assert list(batch.step_advantages) == step_advantages(SIBLINGS, HALF)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.text("xyz", min_size=1, max_size=5)), min_size=1, max_size=6
    ),
    st.sampled_from(["mean", "leave_one_out"]),
    st.booleans(),
)
def test_they_cancel_where_siblings_met_and_are_nothing_where_one_was_alone(episodes, baseline, std) -> None:
    config = AdvantageConfig(
        credit="gigpo", baseline=baseline, normalise_by_std=std and baseline == "mean", min_group_std=0.0
    )
    rows = [played(str(i), reward, states) for i, (reward, states) in enumerate(episodes)]
    met = defaultdict(list)
    for row, steps in zip(rows, step_advantages(rows, config), strict=True):
        for turn, step in zip(row.turns, steps, strict=True):
            met[turn.state].append(step)
    for steps in met.values():
        assert sum(steps) == pytest.approx(0, abs=1e-9)
        assert len(steps) > 1 or steps == [0.0]
    nothing = group_advantages(rows, replace(config, step_weight=0.0)).batch
    assert nothing.advantages == group_advantages(rows, replace(config, credit="episode")).batch.advantages
    assert not any(step for steps in nothing.step_advantages for step in steps)


def test_returns_by_hand() -> None:
    assert returns_to_go([1.0, 0.0, 4.0], 0.5) == [2.0, 2.0, 4.0]
    assert returns_to_go([], 0.5) == []


def test_each_trained_token_belongs_to_its_turn() -> None:
    row = replace(SIBLINGS[0], loss_mask=np.array([0, 1, 1, 0, 0, 1, 0, 1, 1], np.int32))
    assert turn_numbers(row.loss_mask).tolist() == [0, 0, 1, 2, 2] and trained_turns(row) == 3
    assert token_steps(row, [1.0, -2.0, 0.5]).tolist() == [0, 1, 1, 0, 0, -2, 0, 0.5, 0.5]
    assert not token_steps(row, []).any()
    with pytest.raises(ValueError, match="3 turns are trained, 2 have steps"):
        token_steps(row, [1.0, 2.0])


def test_a_turn_whose_state_is_unknown_is_known_by_its_pixels() -> None:
    red, blue = (np.full((2, 2, 3), colour, np.uint8) for colour in (1, 2))
    a, b = (replace(row, turns=tuple(replace(turn, state=None) for turn in row.turns)) for row in SIBLINGS[:2])
    a, b = replace(a, images=[red, blue, red]), replace(b, images=[red, blue])
    assert step_advantages([a, b], replace(HALF, discount=1.0)) == [
        pytest.approx([1 / 3, 1 / 2, 1 / 3]),
        pytest.approx([-2 / 3, -1 / 2]),
    ]
    assert image_hash(red) != image_hash(blue) != image_hash(blue.reshape(1, 4, 3))
    with pytest.raises(ValueError, match="episode 'a': no state is known of turn 1"):
        step_advantages([replace(a, images=[])], HALF)
    with pytest.raises(ValueError, match="3 turns are trained, 2 are recorded"):
        step_advantages([replace(a, turns=a.turns[:2])], HALF)


def test_a_batch_has_steps_for_all_of_its_rows_or_none() -> None:
    assert list(Batch(SIBLINGS, [0.0] * 3).steps) == [()] * 3
    with pytest.raises(ValueError, match="3 trajectories but steps of 1"):
        Batch(SIBLINGS, [0.0] * 3, [[0.0]])
