"""What is drawn: a metric of every run against an axis, and the mean over the runs of an arm with its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.compare.arms import Arm
from trainers.compare.runs import Axis, Run

SMOOTHED_FROM = 60
"""Number of steps from which on single steps are too many to see: then a running mean is drawn."""

Points = Mapping[int, float]
"""Step -> value; unknown values are left out."""


@dataclass(frozen=True)
class Line:
    """Points of one run, or of a mean (then with the smallest and largest run at each point)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lines:
    """An arm's runs, and their mean over the steps that all of its counted runs share (None without any)."""

    runs: tuple[Line, ...]
    mean: Line | None


def metric(key: str) -> Callable[[Run], Points]:
    """A metric of the training steps."""

    return lambda run: _by_step(run, run.column(key))


def environments_in_use(run: Run) -> Points:
    """Environments lent to an episode, as a share of the pool over the whole of a step."""
    return _by_step(run, run.environments_in_use())


def held_out(split: str) -> Callable[[Run], Points]:
    """Success of the evaluations on a split."""
    return lambda run: {evaluation.step: evaluation.success for evaluation in run.evaluated(split)}


def lines(arm: Arm, of: Callable[[Run], Points], axis: Axis) -> Lines:
    """The lines of an arm. A point of the mean lies at the mean of both coordinates of the same step."""
    located = {run.directory: _located(of(run), run.axis(axis)) for run in arm.runs}
    single = tuple(_line(points) for points in located.values() if points)
    counted = [located[run.directory] for run in arm.counted]
    shared = sorted(set.intersection(*(set(points) for points in counted)))
    return Lines(single, _mean_line(counted, shared) if shared else None)


def window(rows: int) -> int:
    """Steps of the running mean for a run of so many rows; odd, 1 for none."""
    return 1 if rows <= SMOOTHED_FROM else 2 * (rows // SMOOTHED_FROM) + 1


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Centred running mean over up to `width` known values; an unknown value stays unknown."""
    reach = width // 2
    array = np.asarray(values, np.float64)
    return [
        float(np.nanmean(array[max(index - reach, 0) : index + reach + 1])) if math.isfinite(value) else value
        for index, value in enumerate(values)
    ]


def _by_step(run: Run, values: NDArray[np.float64]) -> Points:
    drawn = smoothed(values.tolist(), window(len(run.rows)))
    return {step: value for step, value in zip(run.steps, drawn, strict=True) if math.isfinite(value)}


def _located(points: Points, axis: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    return {step: (axis[step], y) for step, y in points.items() if math.isfinite(axis.get(step, math.nan))}


def _line(points: Mapping[int, tuple[float, float]]) -> Line:
    ordered = [points[step] for step in sorted(points)]
    return Line(tuple(x for x, _ in ordered), tuple(y for _, y in ordered))


def _mean_line(runs: Sequence[Mapping[int, tuple[float, float]]], steps: Sequence[int]) -> Line:
    table = np.array([[points[step] for step in steps] for points in runs])  # runs, steps, (x, y)
    x, y = table[..., 0].mean(axis=0), table[..., 1]
    columns = (x, y.mean(axis=0), y.min(axis=0), y.max(axis=0))
    return Line(*(tuple(column.tolist()) for column in columns))
