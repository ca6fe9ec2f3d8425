"""How many seeds or evaluation episodes would decide what an interval leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import variance

from trainers.compare.bootstrap import Sample

_DEVIATIONS = 1.96
"""Half of a 95 % interval, in standard deviations."""
MOST = 1000
"""Beyond so many seeds, and a thousand times as many episodes, a number is no advice."""


def seeds_needed(candidate: Sequence[Sample], reference: Sequence[Sample], distance: float) -> int | None:
    """Runs a side with which the half-width of the interval of the difference falls below `distance`, how far the
    difference lies from the margin, if difference and spread stay what they are; None when nothing is known of the
    spread (one run on a side), or for more than `MOST`.

    The variance of a run's rate is that between runs, which holds the evaluation's own p (1 - p) / episodes, plus the
    latter once more: the bootstrap draws episodes again.
    """
    if min(len(candidate), len(reference)) < 2 or distance <= 0:
        return None
    spread = sum(variance([s.value for s in side]) + _noise(side) for side in (candidate, reference))
    seeds = math.ceil(spread * (_DEVIATIONS / distance) ** 2)
    return max(seeds, min(len(candidate), len(reference)) + 1) if seeds <= MOST else None


def episodes_needed(candidate: Sequence[Sample], reference: Sequence[Sample], distance: float) -> int | None:
    """Episodes of every run's evaluation with which the half-width falls below `distance` and the runs stay the same;
    None when no number does, because the runs themselves differ too much, or too many would."""
    if distance <= 0:
        return None
    between, noise = 0.0, 0.0
    for side in (candidate, reference):
        observed = variance([s.value for s in side]) if len(side) > 1 else 0.0
        own = _noise(side)
        between += max(observed - own, 0.0) / len(side)
        noise += (2 if len(side) > 1 else 1) * own / len(side)
    room = (distance / _DEVIATIONS) ** 2 - between
    if room <= 0:
        return None
    present = max(sample.episodes for sample in (*candidate, *reference))
    episodes = math.ceil(present * noise / room)
    return max(episodes, present + 1) if episodes <= MOST * MOST else None


def _noise(side: Sequence[Sample]) -> float:
    """Variance of a run's rate over evaluations of the same weights, mean over the runs."""
    return sum(s.value * (1 - s.value) / s.episodes for s in side if s.episodes) / len(side)
