"""The rungs of the ladder: what each measures, and how much of it is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.parity.errors import FAR, distance, mismatches
from trainers.parity.evidence import Episodes, Evidence, Rows


@dataclass(frozen=True)
class Rung:
    """`tolerance` is the largest error that passes, in float32; `rounded` says that rounding moves what is compared."""

    number: int
    name: str
    measure: str
    tolerance: float

    @property
    def rounded(self) -> bool:
        return self.tolerance > 0


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
    infinite then). A `known` difference is one that the phase is documented to have. `rounding` is the error that is
    allowed for the sake of bfloat16, if more than the rung's tolerance."""

    rung: Rung
    phase: int
    piece: str
    error: float
    note: str = ""
    known: bool = False
    rounding: float = 0.0

    @property
    def allowed(self) -> float:
        """The largest error that passes."""
        return max(self.rung.tolerance, self.rounding)

    @property
    def passed(self) -> bool:
        """Whether the deviation is within what is allowed."""
        return self.error <= self.allowed  # false for NaN

    @property
    def share(self) -> float:
        """The error as a part of what is allowed, also where that is nothing."""
        return self.error / self.allowed if self.allowed else FAR if self.error else 0.0


Errors = dict[Rung, dict[str, float]]
"""Of each rung, the error of everything that it compares, by what differs ("" for what is one thing)."""

Rounding = Callable[[Rung, str], float]
"""What is allowed for the sake of bfloat16, of a rung and what it compares."""


def no_rounding(rung: Rung, name: str) -> float:
    """In float32 the rungs' tolerances hold."""
    del rung, name
    return 0.0


def measure(
    phase: int, piece: str, ours: Evidence, theirs: Evidence, rounding: Rounding = no_rounding
) -> list[Measurement]:
    """Rungs 0 to 3 of a replayed piece: `ours` is the legacy side."""
    if broken := _broken(ours.figures.error, theirs.figures.error):
        return unmeasured(phase, piece, broken)
    return [_worst(rung, phase, piece, errors, rounding) for rung, errors in errors_of(ours, theirs).items()]


def unmeasured(phase: int, piece: str, why: str) -> list[Measurement]:
    """Rungs 0 to 3 of a piece of which nothing is known."""
    return [Measurement(rung, phase, piece, FAR, why) for rung in REPLAYED]


def _worst(
    rung: Rung, phase: int, piece: str, errors: Mapping[str, float], rounding: Rounding = no_rounding
) -> Measurement:
    """What is farthest off, measured in what is allowed."""
    each = [
        Measurement(rung, phase, piece, error, name if error else "", rounding=rounding(rung, name))
        for name, error in errors.items()
    ]
    return max(each, key=lambda m: m.share, default=Measurement(rung, phase, piece, 0.0))


def errors_of(ours: Evidence, theirs: Evidence) -> Errors:
    """How far two sides that came to an end are apart."""
    settings, rates = _unequal(ours.figures.settings, theirs.figures.settings), _unequal(*map(_rates, (ours, theirs)))
    updates = _apart(*({**e.figures.updates, **dict.fromkeys(_rates(e), 0.0)} for e in (ours, theirs)))
    gradients, weights = distance(ours.gradients, theirs.gradients), distance(ours.weights, theirs.weights)
    loss = abs(theirs.figures.loss - ours.figures.loss) / ours.figures.scale
    still = "" if ours.figures.moved > 0 and theirs.figures.moved > 0 else "the updates moved nothing"
    return {
        SETTINGS: {"; ".join(settings): float(len(settings))},
        ROWS: {"": float(mismatches(ours.rows, theirs.rows))},
        LOSS: {"": loss if math.isfinite(loss) else FAR},
        METRICS: _apart(ours.figures.metrics, theirs.figures.metrics),
        GRADIENTS: {"": gradients.relative},
        DIRECTION: {"": gradients.turned},
        RATES: {"; ".join(rates): float(len(rates))},
        UPDATES: updates,
        MOMENTS: {"": distance(ours.moments, theirs.moments).relative},
        WEIGHTS: {still: FAR if still else weights.relative},
    }


def measure_refusal(phase: int, piece: str, theirs: Evidence, keys: Iterable[str]) -> Measurement:
    """A case that the phase has to refuse, naming one of its `keys`: a known difference."""
    said = theirs.figures.error or "was replayed"
    refused = said.startswith("ConfigError: ") and any(key in said for key in keys)
    why = said.removeprefix("ConfigError: ")
    return Measurement(SETTINGS, phase, piece, 0.0 if refused else FAR, why, refused)


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
    tokens = {"": float(sum(mismatches(a, b) for a, b in pairs))}
    figures = _apart(*map(_by_step, (ours.steps, theirs.steps)))
    return [_worst(rung, phase, piece, errors) for rung, errors in ((EPISODES, tokens), (STEPS, figures))]


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


def _apart(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> dict[str, float]:
    """The difference of each figure. None (nothing was measured) only equals None, and learning rates, which are small,
    are always compared relatively."""
    if lacking := sorted(ours.keys() ^ theirs.keys()):
        return {f"reported by one side only: {', '.join(lacking)}": FAR}
    return {name: _gap(name, value, theirs[name]) for name, value in ours.items()}


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
