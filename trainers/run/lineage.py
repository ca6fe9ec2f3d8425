"""The lineage of a run: the run and everything it was resumed from, read as one thing.

Each run directory names its parent in `run.json` (`resumed_from`) and the step behind which it goes on
(`resumed_step`). What the parent did beyond that step was lost, and is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainers.config.saved import CONFIG, read_about
from trainers.run.files import damaged_lines, read_rows

UNKNOWN = sys.maxsize
"""The beginning of a run that does not tell it: behind everything that its parent did."""
METRICS, EVALUATIONS = "metrics.jsonl", "eval.jsonl"

R = TypeVar("R")


@dataclass(frozen=True)
class Part:
    """One run directory of a lineage; its steps begin behind step `begins`."""

    directory: Path
    begins: int


@dataclass(frozen=True)
class Lineage:
    """The parts of a run, oldest first; `notes` say, a line each, what is missing of them."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


def lineage_of(directory: Path) -> Lineage:
    """The lineage that ends with the run in `directory`, as far back as the directories are there."""
    parts: list[Part] = []
    notes: list[str] = []
    place: Path | None = directory
    while place is not None:
        notes += [f"{place.name}: {line}" for line in _damage(place)]
        about = read_about(place)
        named = about.get("resumed_from")
        parts.append(Part(place, _begins(place, about) if isinstance(named, str) else 0))
        former = _parent(place, about, [part.directory for part in parts]) if isinstance(named, str) else None
        if isinstance(named, str) and former is None:
            notes.append(
                f"{place.name}: resumed from {named}, which is not there; its minutes and episodes are unknown"
            )
        place = former
    return Lineage(tuple(reversed(parts)), tuple(notes))


def joined(
    pieces: Iterable[tuple[Part, Sequence[R]]], step: Callable[[R], int], identity: Callable[[R], Hashable]
) -> list[R]:
    """The rows of a lineage's parts in order of steps, without gap or double: a part replaces what came after its
    beginning, a later row one of the same identity."""
    found: dict[Hashable, R] = {}
    for part, rows in pieces:
        found = {key: row for key, row in found.items() if step(row) <= part.begins}
        found |= {identity(row): row for row in rows}
    return sorted(found.values(), key=step)


def training_rows(lineage: Lineage) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, one for each step."""
    return joined(_pieces(lineage, METRICS), _step, _step)


def evaluation_rows(lineage: Lineage) -> list[dict[str, Any]]:
    """The rows of `eval.jsonl`, one for each step and split."""
    return joined(_pieces(lineage, EVALUATIONS), _step, lambda row: (row.get("split"), row["step"]))


def _pieces(lineage: Lineage, name: str) -> list[tuple[Part, list[dict[str, Any]]]]:
    return [
        (part, [row for row in read_rows(part.directory / name) if isinstance(row, dict) and is_step(row.get("step"))])
        for part in lineage.parts
    ]


def is_step(value: object) -> bool:
    """Whether `value` counts steps."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_run_directory(directory: Path) -> bool:
    """Whether a run left something in `directory`."""
    return any((directory / name).is_file() for name in (CONFIG, METRICS))


def started(directory: Path) -> str:
    """When the run began, as ISO text; empty when nobody knows."""
    return str(read_about(directory).get("started", ""))


def _step(row: dict[str, Any]) -> int:
    step: int = row["step"]
    return step


def _begins(directory: Path, about: dict[str, Any]) -> int:
    """The step behind which a resumed run goes on: as it says, else as its first row does."""
    said = about.get("resumed_step")
    if isinstance(said, int) and is_step(said):
        return said
    steps = [row["step"] for _, rows in _pieces(Lineage((Part(directory, 0),)), METRICS) for row in rows]
    return min(steps) - 1 if steps else UNKNOWN


def _parent(directory: Path, about: dict[str, Any], known: Sequence[Path]) -> Path | None:
    """The run directory that `resumed_from` names, itself or with a checkpoint in it: where it was, or beside this one
    when both were moved.

    Never one that is `known` already; nor, unless the run wrote down where it begins, a younger one, which only shares
    the name.
    """
    named = Path(str(about["resumed_from"])).expanduser()
    places = [named, *list(named.parents)[:2]]
    places += [directory.absolute().parent / place.name for place in places if place.name]
    seen = {place.resolve() for place in known}
    for place in places:
        if not is_run_directory(place) or place.resolve() in seen:
            continue
        if is_step(about.get("resumed_step")) or started(place) < started(directory):
            return place
    return None


def _damage(directory: Path) -> list[str]:
    damaged = [(name, damaged_lines(directory / name)) for name in (METRICS, EVALUATIONS)]
    return [
        f"line {', '.join(map(str, lines))} of {name} cannot be read and is left out"
        for name, lines in damaged
        if lines
    ]
