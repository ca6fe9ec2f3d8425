"""What bfloat16 costs: how far the legacy backend is from itself where all but the rounding is equal.

In bfloat16 two right programs differ by far more than float32's tolerances. How much is right is measured on the very
batches that are replayed, by twins of the legacy side: one computes them in float32, the other in bfloat16 with the
rows in reverse and each alone in its micro-batch. The cost is how far the farther twin is from legacy; a phase may be
`FACTOR` times as far, and never has to be closer than in float32.

What is compared as one long vector has an error that hardly depends on luck, and is allowed what it costs on that piece
of work. A single figure may be met by chance: it is allowed its largest cost in any update of any piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cua_agent.trajectory import Trajectory
from trainers.config import TrainConfig
from trainers.parity.cases import with_keys
from trainers.parity.evidence import Evidence
from trainers.parity.replay import REFERENCE, Side
from trainers.parity.rungs import DIRECTION, LOSS, METRICS, UPDATES, Errors, Rung, errors_of

TWINS: tuple[Side, ...] = ("legacy-float32", "legacy-alone")

FACTOR = 2.0
"""What a phase may be off, in costs: two results that are both off the exact one by a cost are at most two apart."""
_ALONE = 64
"""The smallest budget of a micro-batch: every row exceeds it, and goes alone."""
_POOLED = (LOSS, METRICS, UPDATES)


@dataclass(frozen=True)
class Costs:
    """Of every rung that rounding moves, what it costs everything that the rung compares, by its name; `broken` says
    why that is not known."""

    by_rung: Mapping[Rung, Mapping[str, float]]
    broken: str = ""

    def allowed(self, rung: Rung, name: str) -> float:
        """The largest error that passes. 1 - cosine grows with the square of an error."""
        factor = FACTOR**2 if rung == DIRECTION else FACTOR
        return factor * self.by_rung.get(rung, {}).get(_figure(name), 0.0)


NO_COSTS = Costs({})


def as_twin(
    side: Side, config: TrainConfig, batches: Sequence[Sequence[Trajectory]]
) -> tuple[TrainConfig, Sequence[Sequence[Trajectory]]]:
    """What a twin makes of the configuration and the batches that the legacy side replays; no other side changes
    anything."""
    if side == "legacy-float32":
        return with_keys(config, {"model.dtype": "float32"}), batches
    if side == "legacy-alone":
        return with_keys(config, {"optim.micro_batch_tokens": _ALONE}), [list(reversed(rows)) for rows in batches]
    return config, batches


def costs(pieces: Iterable[str], evidence: Callable[[Side, str], Evidence]) -> dict[str, Costs]:
    """The costs of each piece of work; `evidence(side, piece)` is what a side came to."""
    by_piece = {piece: _costs_of(piece, evidence) for piece in pieces}
    pooled = {rung: _largest(cost.by_rung.get(rung, {}) for cost in by_piece.values()) for rung in _POOLED}
    return {piece: replace(cost, by_rung={**cost.by_rung, **pooled}) for piece, cost in by_piece.items()}


def _costs_of(piece: str, evidence: Callable[[Side, str], Evidence]) -> Costs:
    ours = evidence(REFERENCE, piece)
    found: list[Errors] = []
    for twin in TWINS:
        theirs = evidence(twin, piece)
        if theirs.figures.error is not None:
            return Costs({}, f"{twin}: {theirs.figures.error}")
        found.append(errors_of(ours, theirs))
    by_rung = {rung: _largest(errors[rung] for errors in found) for rung in found[0] if rung.rounded}
    unknown = [
        f"{rung.name} {name}".strip() for rung, each in by_rung.items() for name in each if each[name] == math.inf
    ]
    return Costs(by_rung, f"no cost of bfloat16 is known of {', '.join(unknown)}" if unknown else "")


def _largest(each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for errors in each:
        for name, error in errors.items():
            out[_figure(name)] = max(error, out.get(_figure(name), 0.0))
    return out


def _figure(name: str) -> str:
    """`<update>/<figure>` without the number of the update."""
    return name.rpartition("/")[2]
