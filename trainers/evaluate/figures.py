"""What the episodes of an evaluation say: figures with 95 % intervals over starts, and differences of two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cua_agent.tasks import world_of
from cua_agent.trajectory import Outcome
from trainers.compare.bootstrap import Estimate, Sample, mean_of
from trainers.compare.figures import Unit
from trainers.evaluate.playing import Start

ALL = "all"


@dataclass(frozen=True)
class Figure:
    """Something that is measured of every start; `of` gives None where a start does not tell it."""

    key: str
    title: str
    unit: Unit
    of: Callable[[Start], float | None]


Figures = Mapping[str, Estimate | None]
"""Estimates by `Figure.key`; None where no start tells it."""


def pass_at_k(episodes: int, successes: int, k: int) -> float:
    """The chance that of `k` episodes at least one succeeds, estimated without bias from `episodes` >= k, of which
    `successes` did: 1 - C(n - c, k) / C(n, k) (Chen et al., Evaluating Large Language Models Trained on Code, 2021,
    equation 1)."""
    if not 1 <= k <= episodes or not 0 <= successes <= episodes:
        raise ValueError(f"k={k} of {episodes} episodes with {successes} successes")
    return 1.0 - math.comb(episodes - successes, k) / math.comb(episodes, k)


def figures_for(k: int) -> list[Figure]:
    """Everything that is told of `k` episodes a start; pass@j for the powers of two below k, and for k."""
    powers = sorted({2**n for n in range(1, k.bit_length()) if 2**n < k} | ({k} if k > 1 else set()))
    return [
        Figure("success", "success", "%", lambda start: _mean([play.success for play in start.plays])),
        *(Figure(f"pass@{j}", f"pass@{j}", "%", _pass_at(j)) for j in powers),
        Figure("score", "partial score", "%", lambda start: _mean([play.score for play in start.plays])),
        Figure("turns", "turns", "count", lambda start: _mean([play.turns for play in start.plays])),
        Figure("false_claims", "false claims", "%", _false_claims),
    ]


def measured(starts: Sequence[Start], figures: Sequence[Figure]) -> dict[str, Figures]:
    """The figures of all starts (`ALL`), and by world, where there are several, and category."""
    return {name: {each.key: _estimate(each, of) for each in figures} for name, of in _parts(starts).items()}


def differences(starts: Sequence[Start], others: Sequence[Start], figures: Sequence[Figure]) -> dict[str, Figures]:
    """By how much the figures of `starts` exceed those of `others`, start by start: the luck of an easy or hard start
    is on both sides and cancels."""
    pairs = list(zip(starts, others, strict=True))
    if any((a.task, a.seed) != (b.task, b.seed) for a, b in pairs):
        raise ValueError("only evaluations on the same starts are compared in pairs")
    other_of = {id(ours): theirs for ours, theirs in pairs}

    def difference(figure: Figure, start: Start) -> float | None:
        ours, theirs = figure.of(start), figure.of(other_of[id(start)])
        return None if ours is None or theirs is None else ours - theirs

    return {
        name: {each.key: _mean_of([difference(each, start) for start in of]) for each in figures}
        for name, of in _parts(starts).items()
    }


def _parts(starts: Sequence[Start]) -> dict[str, list[Start]]:
    """All starts, and those of each world and category by name."""
    parts = {ALL: list(starts)}
    for world in sorted({world_of(start.category) for start in starts} - {""}):
        parts[world] = [start for start in starts if world_of(start.category) == world]
    for category in sorted({start.category for start in starts}):
        parts[category] = [start for start in starts if start.category == category]
    return parts


def _estimate(figure: Figure, starts: Sequence[Start]) -> Estimate | None:
    return _mean_of([figure.of(start) for start in starts])


def _mean_of(values: Sequence[float | None]) -> Estimate | None:
    """The mean over starts and its bootstrap interval, starts drawn again whole, with all their episodes."""
    samples = [Sample(value) for value in values if value is not None]
    return mean_of(samples) if samples else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_at(k: int) -> Callable[[Start], float | None]:
    def of(start: Start) -> float | None:
        if len(start.plays) < k:  # the others are lost
            return None
        return pass_at_k(len(start.plays), sum(play.success for play in start.plays), k)

    return of


def _false_claims(start: Start) -> float | None:
    return _mean([play.outcome is Outcome.FALSE_CLAIM for play in start.plays])
