"""The rungs of the ladder: what each measures, and how much of it is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.parity.errors import FAR, distance, mismatches
from trainers.parity.evidence import Episodes, Evidence


@dataclass(frozen=True)
class Rung:
    """`tolerance` is the largest error that passes."""

    number: int
    name: str
    measure: str
    tolerance: float


ROWS = Rung(0, "rows", "entries of ids, masks, old log-probs, advantages and pixels that differ", 0)
LOSS = Rung(1, "loss", "difference, relative to sum of coefficient * |advantage|", 1e-6)
METRICS = Rung(1, "metrics", "largest difference of the other figures of a step, relative where they exceed 1", 1e-5)
GRADIENTS = Rung(2, "gradient", "norm of the difference, relative", 1e-5)
DIRECTION = Rung(2, "cosine", "1 - cosine of the gradients", 1e-8)
WEIGHTS = Rung(3, "weights", "norm of the difference after 5 updates, relative", 1e-5)
EPISODES = Rung(4, "tokens", "sampled tokens and their versions that differ in greedy episodes", 0)
LEARNING = Rung(5, "learning", "how far below zero the interval of the difference of final success reaches", 0.05)
LADDER = (ROWS, LOSS, METRICS, GRADIENTS, DIRECTION, WEIGHTS, EPISODES)


@dataclass(frozen=True)
class Measurement:
    """One rung of one phase on one piece; `note` says why nothing could be measured (the error is infinite then)."""

    rung: Rung
    phase: int
    piece: str
    error: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.error <= self.rung.tolerance  # false for NaN


def measure(phase: int, piece: str, ours: Evidence, theirs: Evidence) -> list[Measurement]:
    """Rungs 0 to 3 of a replayed piece: `ours` is the legacy side."""
    rungs = (ROWS, LOSS, METRICS, GRADIENTS, DIRECTION, WEIGHTS)
    if broken := _broken(ours.figures.error, theirs.figures.error):
        return [Measurement(rung, phase, piece, FAR, broken) for rung in rungs]
    gradients, weights = distance(ours.gradients, theirs.gradients), distance(ours.weights, theirs.weights)
    loss = abs(theirs.figures.loss - ours.figures.loss) / ours.figures.scale
    still = "" if ours.figures.moved > 0 and theirs.figures.moved > 0 else "the updates moved nothing"
    errors = {
        ROWS: float(mismatches(ours.rows, theirs.rows)),
        LOSS: loss if math.isfinite(loss) else FAR,
        METRICS: _apart(ours.figures.metrics, theirs.figures.metrics),
        GRADIENTS: gradients.relative,
        DIRECTION: gradients.turned,
        WEIGHTS: FAR if still else weights.relative,
    }
    return [Measurement(rung, phase, piece, errors[rung], still if rung is WEIGHTS else "") for rung in rungs]


def measure_episodes(phase: int, piece: str, ours: Episodes, theirs: Episodes) -> Measurement:
    """Rung 4. The asynchronous backend may play more episodes, ahead of the end; none may be missing."""
    if broken := _broken(ours.error, theirs.error):
        return Measurement(EPISODES, phase, piece, FAR, broken)
    if not changed_by_training(ours):
        return Measurement(EPISODES, phase, piece, FAR, "training changed no greedy episode: nothing was tested")
    missing = [name for name in ours.rows if name not in theirs.rows]
    if missing:
        return Measurement(EPISODES, phase, piece, FAR, f"not played: {', '.join(sorted(missing)[:3])}")
    pairs = [(_said(ours.rows[name]), _said(theirs.rows[name])) for name in ours.rows]
    return Measurement(EPISODES, phase, piece, float(sum(mismatches(a, b) for a, b in pairs)))


def changed_by_training(episodes: Episodes) -> int:
    """How many episodes of the evaluation before training went otherwise in the one after it; between the two lies
    another one, of other tasks."""
    before = {name.partition("#")[0]: rows for name, rows in episodes.rows.items() if name.endswith("#0")}
    after = {name.partition("#")[0]: rows for name, rows in episodes.rows.items() if name.endswith("#2")}
    return sum(
        [row["tokens"] for row in rows] != [row["tokens"] for row in before[name]] for name, rows in after.items()
    )


def _apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    if ours.keys() != theirs.keys():
        return FAR
    gaps = [abs(theirs[name] - value) / max(abs(value), 1.0) for name, value in ours.items()]
    return max(gaps, default=0.0) if all(map(math.isfinite, gaps)) else FAR


def _said(rows: list[dict[str, list[int]]]) -> Mapping[str, np.ndarray[Any, Any]]:
    return {f"{index}/{key}": np.array(values) for index, row in enumerate(rows) for key, values in row.items()}


def _broken(ours: str | None, theirs: str | None) -> str:
    return f"legacy: {ours}" if ours else theirs or ""
