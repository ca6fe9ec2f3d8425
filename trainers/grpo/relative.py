"""Values of a group, each relative to the others."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from typing import TypeVar

from trainers.config import AdvantageConfig

K = TypeVar("K", bound=Hashable)

MIN_COMPARED = 2
"""What is alone has nothing to be compared with."""


def relative(values: Mapping[K, float], config: AdvantageConfig) -> dict[K, float]:
    """Each of `values` less their mean, in standard deviations (of the population) with `normalise_by_std`; with
    `baseline=leave_one_out` less the mean of the others. Empty when they tell nothing: there is one, or they are less
    than `min_group_std` apart. So no epsilon is needed."""
    if len(values) < MIN_COMPARED:
        return {}
    mean, std = statistics.fmean(values.values()), statistics.pstdev(values.values())
    if std == 0 or std < config.min_group_std:
        return {}
    scale = std if config.normalise_by_std else 1.0
    if config.baseline == "leave_one_out":
        scale *= 1 - 1 / len(values)  # r - (n mean - r) / (n - 1) = (r - mean) n / (n - 1)
    return {key: (value - mean) / scale for key, value in values.items()}
