"""One step on the clock: what the run and each of its devices did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from trainers.timeline.log import read_timeline
from trainers.timeline.spans import RUN_TRACKS, Span, device_spans, run_spans


def strip(directory: Path, step: int) -> dict[str, Any] | None:
    """The lanes of a step of the run in `directory`: from where the wait for its batch began to where its weights were
    published. A span is its kind, beginning and length in seconds of the strip, and name. None without a timeline."""
    rows = read_timeline(directory)
    own = list(run_spans(rows))
    of_step = [span for span in own if span.name == f"step {step}"]
    if not of_step:
        return None
    began, ended = min(span.began for span in of_step), max(span.ended for span in of_step)
    lanes: dict[tuple[str, str], list[tuple[str, float, float, str]]] = {("run", track): [] for track in RUN_TRACKS}
    for span in chain(own, device_spans(rows)):
        start, stop = max(span.began, began), min(span.ended, ended)
        if start < stop:
            place = round(start - began, 3), round(stop - start, 3)
            lanes.setdefault((span.group, span.track), []).append((_kind(span), *place, span.name))
    return {"step": step, "seconds": ended - began, "lanes": list(_told(lanes))}


def _kind(span: Span) -> str:
    """What its colour says: the track of the run, what a device waited for, or that it played an episode."""
    if span.group == "run":
        return span.track.split()[0]
    return "episode" if span.args else span.name


def _told(lanes: dict[tuple[str, str], list[tuple[str, float, float, str]]]) -> Iterator[dict[str, Any]]:
    """Lanes of the run first, then devices by number; those of several processes have the process's name, too."""
    several = len({group for group, _ in lanes}) > 2
    for (group, track), spans in sorted(lanes.items(), key=lambda lane: _order(*lane[0])):
        name = f"{group.rpartition(' ')[2]}: {track}" if several and group != "run" else track
        yield {"name": name, "spans": spans}


def _order(group: str, track: str) -> tuple[bool, str, int]:
    if group == "run":
        return False, "", RUN_TRACKS.index(track)
    number = track.rpartition(" ")[2]
    return True, group, int(number) if number.isdecimal() else 0
