import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.compare.bootstrap import Sample, difference_of, evaluation_noise, mean_of, ratio_of


def samples(*values: float, episodes: int = 0) -> list[Sample]:
    return [Sample(value, episodes) for value in values]


def test_the_mean_of_two_runs_lies_between_them_with_the_quarters_of_a_resample() -> None:
    # Two runs can be drawn as (a,a), (a,b), (b,a), (b,b): a quarter of the resamples is a, so 2.5 % is a.
    estimate = mean_of(samples(1.0, 3.0))
    assert (estimate.mean, estimate.low, estimate.high, estimate.runs) == (2.0, 1.0, 3.0, 2)


def test_bounds_follow_from_the_multiset_of_draws() -> None:
    # Ten runs of which one is 1: the mean is k/10 with k ~ binomial(10, 1/10); P(k = 0) = 0.349, P(k <= 3) = 0.987,
    # P(k <= 2) = 0.930, so the percentiles 2.5 and 97.5 are 0 and 0.3.
    estimate = mean_of(samples(1.0, *[0.0] * 9))
    assert estimate.mean == pytest.approx(0.1)
    assert (estimate.low, estimate.high) == (pytest.approx(0.0), pytest.approx(0.3))


def test_one_run_has_no_interval() -> None:
    assert mean_of(samples(0.5, episodes=200)).low is None
    assert difference_of(samples(0.5), samples(0.4, 0.6)).high is None
    assert ratio_of(samples(4.0), samples(2.0)).mean == 2.0


def test_evaluation_noise_alone_is_that_of_two_binomials() -> None:
    # 0.9 and 0.8 of 200 episodes: variance 0.9*0.1/200 + 0.8*0.2/200 = 0.00125, so 1.96 sigma = 0.0693.
    low, high = evaluation_noise(samples(0.9, episodes=200), samples(0.8, episodes=200))
    assert low == pytest.approx(0.1 - 0.0693, abs=0.006)
    assert high == pytest.approx(0.1 + 0.0693, abs=0.006)


def test_evaluation_episodes_widen_the_interval_of_equal_runs() -> None:
    # Three runs at 0.5 of 100 episodes differ in nothing; the noise of their 300 episodes remains: sigma = 0.0289.
    estimate = mean_of(samples(0.5, 0.5, 0.5, episodes=100))
    assert estimate.high is not None
    assert estimate.high - estimate.mean == pytest.approx(1.96 * 0.0289, abs=0.006)
    plain = mean_of(samples(0.5, 0.5, 0.5))
    assert (plain.low, plain.high) == (0.5, 0.5)


def test_the_same_runs_give_the_same_interval_and_two_sides_are_drawn_apart() -> None:
    runs = samples(0.9, 0.95, 0.99, episodes=200)
    assert difference_of(runs, runs) == difference_of(runs[::-1], runs)
    estimate = difference_of(runs, runs)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < 0 < estimate.high  # equal draws on both sides would give 0 to 0


def test_a_ratio_of_constants_is_exact() -> None:
    estimate = ratio_of(samples(3.0, 3.0), samples(2.0, 2.0, 2.0))
    assert (estimate.mean, estimate.low, estimate.high, estimate.runs) == (1.5, 1.5, 1.5, 2)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), st.floats(-50, 50))
def test_bounds_enclose_the_mean_and_move_with_the_values(values: list[float], shift: float) -> None:
    estimate = mean_of(samples(*values))
    moved = mean_of(samples(*(value + shift for value in values)))
    assert estimate.low is not None and estimate.high is not None
    assert moved.low is not None and moved.high is not None
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert math.isclose(moved.low, estimate.low + shift, abs_tol=1e-6)
    assert math.isclose(moved.high, estimate.high + shift, abs_tol=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.compare.bootstrap.RESAMPLES", 500)
    random = np.random.default_rng(0)

    def three_seeds() -> list[Sample]:
        rates = np.clip(random.normal(0.95, 0.01, 3), 0, 1)
        return samples(*(random.binomial(200, rates) / 200), episodes=200)

    estimates = [difference_of(three_seeds(), three_seeds()) for _ in range(300)]
    covered = sum(e.low <= 0 <= e.high for e in estimates if e.low is not None and e.high is not None)
    assert covered / len(estimates) >= 0.93
