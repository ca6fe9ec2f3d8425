"""Ending boxes that nobody looks after any more, by label and age."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cua_agent.envs.gbox.service import BoxInfo, end_boxes, list_boxes, new_client
from cua_agent.envs.gbox.settings import MADE_BY, RUN, GBoxSettings

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Selection:
    """Which of this library's boxes to end: those of `run` (None: of any) that are older than `older_than_s`."""

    run: str | None = None
    older_than_s: float = 0.0

    @property
    def labels(self) -> dict[str, str]:
        """Labels of other people's boxes never match."""
        return MADE_BY if self.run is None else {**MADE_BY, RUN: self.run}


def seconds_of(age: str) -> float:
    """Seconds of an age such as 90s, 30m, 2h or 1d. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+)([smhd])", age)
    if match is None:
        raise ValueError(f"{age[:40]!r} is not an age such as 90s, 30m, 2h or 1d")
    return int(match[1]) * _UNITS_S[match[2]]


async def reap(settings: GBoxSettings, selection: Selection, *, dry_run: bool, say: Callable[[str], None]) -> bool:
    """End the selected boxes, say what became of each, and return whether none of them is left.

    Raises `EnvironmentFailure` when they cannot be listed, `WorldUnavailable` when there is no key or a wrong one.
    """
    async with new_client(settings) as client:
        listed = await list_boxes(client, selection.labels)
        boxes = [box for box in listed if box.age_s >= selection.older_than_s]
        failures = {} if dry_run else await end_boxes(client, boxes)
    for box in boxes:
        say(_line(box, "would end" if dry_run else failures.get(box.id, "ended")))
    ended = 0 if dry_run else len(boxes) - len(failures)
    say(f"{len(boxes)} boxes found, {ended} ended" + (f", {len(failures)} NOT ended" if failures else ""))
    return not failures


def _line(box: BoxInfo, fate: str) -> str:
    run = box.labels.get(RUN, "")
    return f"{box.id}  {box.type:7} {box.status:7} {_age(box.age_s):>6}  run={run}  {fate}"


def _age(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
