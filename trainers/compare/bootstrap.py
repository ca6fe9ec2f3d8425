"""Bootstrap intervals of means over runs, of their differences and of their ratios.

Percentile intervals at 95 % from resamples with a fixed seed. A resample draws runs with replacement; where a value is
a success rate it then draws that run's evaluation episodes again too, so that the interval holds both the luck of a
training seed and that of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_TAILS = (2.5, 97.5)

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """What one run measured; `episodes` > 0 says that `value` is a rate over so many episodes."""

    value: float
    episodes: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference or ratio of two, over `runs` runs (of the smaller side); without bounds where one run
    says nothing about the next."""

    mean: float
    low: float | None
    high: float | None
    runs: int


def mean_of(samples: Sequence[Sample]) -> Estimate:
    """The mean of at least one sample."""
    return _estimate(_mean(samples), _draws(samples, 0), len(samples))


def difference_of(candidate: Sequence[Sample], reference: Sequence[Sample]) -> Estimate:
    """Mean of the candidate minus mean of the reference."""
    draws = _draws(candidate, 1) - _draws(reference, 0)
    return _estimate(_mean(candidate) - _mean(reference), draws, min(len(candidate), len(reference)))


def ratio_of(candidate: Sequence[Sample], reference: Sequence[Sample]) -> Estimate:
    """Mean of the candidate divided by mean of the reference, all values positive."""
    draws = _draws(candidate, 1) / _draws(reference, 0)
    return _estimate(_mean(candidate) / _mean(reference), draws, min(len(candidate), len(reference)))


def evaluation_noise(candidate: Sequence[Sample], reference: Sequence[Sample]) -> tuple[float, float]:
    """Bounds of a difference of success rates that has one run on a side: for a single run, the episodes of its
    evaluation are all that can be drawn again."""
    low, high = np.percentile(_draws(candidate, 1) - _draws(reference, 0), _TAILS)
    return float(low), float(high)


def _draws(samples: Sequence[Sample], stream: int) -> Draws:
    """Means of `RESAMPLES` resamples, whatever the order of the samples; two streams are independent of each other."""
    generator = np.random.default_rng([stream, len(samples)])
    samples = sorted(samples, key=lambda sample: (sample.value, sample.episodes))
    values = np.array([sample.value for sample in samples])
    episodes = np.array([sample.episodes for sample in samples])
    chosen = generator.integers(len(samples), size=(RESAMPLES, len(samples)))
    drawn = values[chosen]
    if episodes.all():
        drawn = generator.binomial(episodes[chosen], np.clip(drawn, 0, 1)) / episodes[chosen]
    return drawn.mean(axis=1)  # type: ignore[no-any-return]


def _mean(samples: Sequence[Sample]) -> float:
    return float(np.mean([sample.value for sample in samples]))


def _estimate(mean: float, draws: Draws, runs: int) -> Estimate:
    if runs < 2:
        return Estimate(mean, None, None, runs)
    low, high = np.percentile(draws, _TAILS)
    return Estimate(mean, float(low), float(high), runs)
