"""The rungs of the ladder: what each measures, and how much of it is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.parity.errors import FAR, distance, mismatches
from trainers.parity.evidence import Episodes, Evidence, Rows


@dataclass(frozen=True)
class Rung:
    """`tolerance` is the largest error that passes."""

    number: int
    name: str
    measure: str
    tolerance: float


SETTINGS = Rung(0, "settings", "settings of the optimiser that differ, before the updates or after them", 0)
ROWS = Rung(0, "rows", "entries of ids, masks, old log-probs, advantages, versions and pixels that differ", 0)
LOSS = Rung(1, "loss", "difference, relative to sum of coefficient * |advantage|", 1e-6)
METRICS = Rung(1, "metrics", "largest difference of the other figures of that loss, relative where they exceed 1", 1e-5)
GRADIENTS = Rung(2, "gradient", "norm of the difference, relative", 1e-5)
DIRECTION = Rung(2, "cosine", "1 - cosine of the gradients", 1e-8)
RATES = Rung(3, "schedule", "learning rates of 5 updates, skipped ones and counters after them that differ", 0)
UPDATES = Rung(3, "updates", "largest difference of what 5 updates report, relative where it exceeds 1", 1e-4)
MOMENTS = Rung(3, "moments", "norm of the difference of AdamW's moments after 5 updates, relative", 1e-5)
WEIGHTS = Rung(3, "weights", "norm of the difference after 5 updates, relative", 1e-5)
EPISODES = Rung(4, "tokens", "sampled tokens and their versions that differ in greedy episodes", 0)
STEPS = Rung(4, "figures", "largest difference of what the steps of that run report, relative where it exceeds 1", 1e-4)
LEARNING = Rung(5, "learning", "how far below zero the interval of the difference of final success reaches", 0.05)
REPLAYED = (SETTINGS, ROWS, LOSS, METRICS, GRADIENTS, DIRECTION, RATES, UPDATES, MOMENTS, WEIGHTS)
LADDER = (*REPLAYED, EPISODES, STEPS)

_COUNTED = ("lr", "skipped", "updates of the optimiser", "updates of the schedule", "policy version")
"""Of what updates report, what is the same to the last digit."""


@dataclass(frozen=True)
class Measurement:
    """One rung of one phase on one piece. `note` says what differs or why nothing could be measured (the error is
    infinite then). A `known` difference is one that the phase is documented to have."""

    rung: Rung
    phase: int
    piece: str
    error: float
    note: str = ""
    known: bool = False

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.error <= self.rung.tolerance  # false for NaN


def measure(phase: int, piece: str, ours: Evidence, theirs: Evidence) -> list[Measurement]:
    """Rungs 0 to 3 of a replayed piece: `ours` is the legacy side."""
    if broken := _broken(ours.figures.error, theirs.figures.error):
        return [Measurement(rung, phase, piece, FAR, broken) for rung in REPLAYED]
    settings, rates = _unequal(ours.figures.settings, theirs.figures.settings), _unequal(*map(_rates, (ours, theirs)))
    metrics = _apart(ours.figures.metrics, theirs.figures.metrics)
    updates = _apart(*({**e.figures.updates, **dict.fromkeys(_rates(e), 0.0)} for e in (ours, theirs)))
    gradients, weights = distance(ours.gradients, theirs.gradients), distance(ours.weights, theirs.weights)
    loss = abs(theirs.figures.loss - ours.figures.loss) / ours.figures.scale
    still = "" if ours.figures.moved > 0 and theirs.figures.moved > 0 else "the updates moved nothing"
    found: dict[Rung, tuple[float, str]] = {
        SETTINGS: (len(settings), "; ".join(settings)),
        ROWS: (mismatches(ours.rows, theirs.rows), ""),
        LOSS: (loss if math.isfinite(loss) else FAR, ""),
        METRICS: metrics,
        GRADIENTS: (gradients.relative, ""),
        DIRECTION: (gradients.turned, ""),
        RATES: (len(rates), "; ".join(rates)),
        UPDATES: updates,
        MOMENTS: (distance(ours.moments, theirs.moments).relative, ""),
        WEIGHTS: (FAR if still else weights.relative, still),
    }
    return [Measurement(rung, phase, piece, float(error), note) for rung, (error, note) in found.items()]


def measure_refusal(phase: int, piece: str, theirs: Evidence, keys: Iterable[str]) -> Measurement:
    """A case that the phase has to refuse, naming one of its `keys`: a known difference."""
    said = theirs.figures.error or "was replayed"
    refused = said.startswith("ConfigError: ") and any(key in said for key in keys)
    return Measurement(SETTINGS, phase, piece, 0.0 if refused else FAR, said.removeprefix("ConfigError: "), refused)


def measure_live(phase: int, piece: str, ours: Episodes, theirs: Episodes) -> list[Measurement]:
    """Rung 4. The asynchronous backend may play more episodes, ahead of the end; none may be missing."""
    broken = _broken(ours.error, theirs.error)
    if not broken and not changed_by_training(ours):
        broken = "training changed no greedy episode: nothing was tested"
    missing = [name for name in ours.rows if name not in theirs.rows]
    if missing and not broken:
        broken = f"not played: {', '.join(sorted(missing)[:3])}"
    if broken:
        return [Measurement(rung, phase, piece, FAR, broken) for rung in (EPISODES, STEPS)]
    pairs = [(_said(ours.rows[name]), _said(theirs.rows[name])) for name in ours.rows]
    tokens = float(sum(mismatches(a, b) for a, b in pairs))
    error, note = _apart(*map(_by_step, (ours.steps, theirs.steps)))
    return [Measurement(EPISODES, phase, piece, tokens), Measurement(STEPS, phase, piece, error, note)]


def changed_by_training(episodes: Episodes) -> int:
    """How many episodes of the evaluation before training went otherwise in the one after it; between the two lies
    another one, of other tasks."""
    before = {name.partition("#")[0]: rows for name, rows in episodes.rows.items() if name.endswith("#0")}
    after = {name.partition("#")[0]: rows for name, rows in episodes.rows.items() if name.endswith("#2")}
    return sum(
        [row["tokens"] for row in rows] != [row["tokens"] for row in before[name]] for name, rows in after.items()
    )


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What is not the same on both sides, in words."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return [f"{name}: {_short(ours.get(name))} on legacy, {_short(theirs.get(name))} here" for name in names]


def _short(value: Any) -> str:
    return f"{len(value)} names" if isinstance(value, list) and len(value) > 2 else str(value)


def _rates(evidence: Evidence) -> dict[str, float]:
    return {name: v for name, v in evidence.figures.updates.items() if name.rpartition("/")[2] in _COUNTED}


def _apart(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> tuple[float, str]:
    """The largest difference, and the name of what it is of. None (nothing was measured) only equals None, and learning
    rates, which are small, are always compared relatively."""
    if lacking := sorted(ours.keys() ^ theirs.keys()):
        return FAR, f"reported by one side only: {', '.join(lacking)}"
    gaps = {name: _gap(name, value, theirs[name]) for name, value in ours.items()}
    worst = max(gaps, key=lambda name: gaps[name], default="")
    return (gaps[worst], worst if gaps[worst] else "") if gaps else (0.0, "")


def _gap(name: str, ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else FAR
    gap = abs(theirs - ours) / (abs(ours) if name.endswith("/lr") and ours else max(abs(ours), 1.0))
    return gap if math.isfinite(gap) else FAR


def _by_step(steps: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {f"step {number}/{name}": value for number, row in enumerate(steps, start=1) for name, value in row.items()}


def _said(rows: Rows) -> Mapping[str, np.ndarray[Any, Any]]:
    return {f"{index}/{key}": np.array(values) for index, row in enumerate(rows) for key, values in row.items()}


def _broken(ours: str | None, theirs: str | None) -> str:
    return f"legacy: {ours}" if ours else theirs or ""
