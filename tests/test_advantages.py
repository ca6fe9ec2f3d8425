import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_world import trajectory

from cua_agent.trajectory import Outcome
from trainers.config import AdvantageConfig
from trainers.grpo.advantages import group_advantages

STD = AdvantageConfig(normalise_by_std=True, min_group_std=1e-4)
NO_STD = AdvantageConfig(normalise_by_std=False, min_group_std=1e-4)


def episodes(rewards, group="g"):
    return [trajectory(r, group_id=group, episode_id=f"{group}{i}") for i, r in enumerate(rewards)]


def test_one_success_in_four_by_hand():
    # mean 1/4, population std sqrt(3)/4: (1 - 1/4) / (sqrt(3)/4) = sqrt(3), (0 - 1/4) / (sqrt(3)/4) = -1/sqrt(3)
    result = group_advantages(episodes([1, 0, 0, 0]), STD)
    assert result.batch.advantages == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rel=1e-12)
    assert (result.reward_mean, result.reward_std) == pytest.approx((0.25, math.sqrt(3) / 4))
    assert (result.groups_kept, result.groups_filtered, result.episodes) == (1, 0, 4)


def test_without_std_is_the_difference_to_the_mean():
    assert group_advantages(episodes([1, 0, 0, 0]), NO_STD).batch.advantages == pytest.approx([0.75] + [-0.25] * 3)


def test_leave_one_out_compares_with_the_others():
    # 1 - 0 for the success; 0 - 1/3 for the rest
    config = AdvantageConfig(baseline="leave_one_out", normalise_by_std=False)
    assert group_advantages(episodes([1, 0, 0, 0]), config).batch.advantages == pytest.approx([1.0] + [-1 / 3] * 3)
    with pytest.raises(ValueError, match="RLOO divides by nothing"):
        AdvantageConfig(baseline="leave_one_out", normalise_by_std=True)


def test_rows_of_an_episode_count_its_reward_once_and_share_its_advantage():
    a1 = trajectory(1.0, episode_id="a", ids=(1, 2))
    a2 = trajectory(1.0, episode_id="a", ids=(3, 4))
    b = trajectory(0.0, episode_id="b")
    result = group_advantages([a1, b, a2], NO_STD)
    assert [id(t) for t in result.batch.trajectories] == [id(a1), id(b), id(a2)]
    assert result.batch.advantages == pytest.approx([0.5, -0.5, 0.5])
    assert result.episodes == 2


def test_groups_without_signal_are_filtered_but_count_in_the_reward_mean():
    result = group_advantages(episodes([1, 1], "same") + episodes([1, 0], "mixed"), STD)
    assert {t.group_id for t in result.batch.trajectories} == {"mixed"}
    assert (result.groups_kept, result.groups_filtered) == (1, 1)
    assert result.reward_mean == 0.75


def test_minimum_deviation_is_a_threshold_on_the_population_std():
    rows = episodes([0.0, 0.2])  # population std 0.1
    assert group_advantages(rows, AdvantageConfig(min_group_std=0.11)).groups_kept == 0
    assert group_advantages(rows, AdvantageConfig(min_group_std=0.09)).groups_kept == 1
    assert group_advantages(episodes([1, 1]), AdvantageConfig(min_group_std=0.0)).groups_kept == 0


def test_infra_error_leaves_the_group_and_its_baseline():
    broken = trajectory(0.0, episode_id="broken", outcome=Outcome.INFRA_ERROR)
    result = group_advantages([*episodes([1, 0]), broken], NO_STD)
    assert result.batch.advantages == pytest.approx([0.5, -0.5])  # the baseline is 1/2, not 1/3
    assert (result.episodes, result.episodes_infra_error, result.reward_mean) == (2, 1, 0.5)


def test_group_left_with_one_valid_episode_is_filtered():
    broken = trajectory(0.0, episode_id="broken", outcome=Outcome.INFRA_ERROR)
    result = group_advantages([*episodes([1]), broken], STD)
    assert (result.groups_kept, result.groups_filtered, list(result.batch.trajectories)) == (0, 1, [])


def test_nothing_at_all():
    result = group_advantages([], STD)
    assert (result.groups_kept, result.groups_filtered, result.reward_mean, result.reward_std) == (0, 0, 0.0, 0.0)


def test_rows_that_disagree_are_refused():
    with pytest.raises(ValueError, match="episode 'e' disagree about reward"):
        group_advantages([trajectory(1.0), trajectory(0.0)], STD)
    with pytest.raises(ValueError, match="not finite"):
        group_advantages([trajectory(math.nan), trajectory(0.0, episode_id="f")], STD)


@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=8), max_size=5))
def test_each_kept_group_has_mean_zero_and_unit_deviation(groups):
    rows = [row for i, rewards in enumerate(groups) for row in episodes(rewards, f"g{i}")]
    result = group_advantages(rows, STD)
    assert result.groups_kept + result.groups_filtered == len(groups)
    by_group = {}
    for row, advantage in zip(result.batch.trajectories, result.batch.advantages, strict=True):
        by_group.setdefault(row.group_id, []).append(advantage)
    assert len(by_group) == result.groups_kept
    for advantages in by_group.values():
        assert sum(advantages) == pytest.approx(0, abs=1e-6)
        assert sum(a * a for a in advantages) / len(advantages) == pytest.approx(1, rel=1e-6)
