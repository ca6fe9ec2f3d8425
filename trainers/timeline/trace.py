"""`trace.json`: the timeline in the trace-event format, which Perfetto and chrome://tracing open.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from trainers.timeline.log import read_timeline
from trainers.timeline.spans import RUN_TRACKS, Span, device_spans, request_spans, run_spans

TRACE = "trace.json"
CLOCK = "clock"
"""Name of the event by which AReaL's tracer tells the time: its own is since an arbitrary moment."""
_AREAL_BYTES = 20_000_000
"""Most that is read of AReaL's own spans, the newest."""


def write_trace(directory: Path) -> Path:
    """Write the trace of the run in `directory` from what is there by now. Raises `OSError`."""
    path = directory / TRACE
    rows = read_timeline(directory)
    spans = list(chain(run_spans(rows), device_spans(rows), request_spans(rows)))
    content = {"traceEvents": [*events_of(spans), *areal_events(directory)], "displayTimeUnit": "ms"}
    partial = path.with_name(f".{TRACE}.{os.getpid()}")
    partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    partial.replace(path)
    return path


def events_of(spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """Complete events (`X`), after the names of their tracks; a group is a process to the format, a track a thread."""
    groups: dict[str, dict[str, int]] = {"run": {track: number for number, track in enumerate(RUN_TRACKS, start=1)}}
    for span in spans:
        tracks = groups.setdefault(span.group, {})
        tracks.setdefault(span.track, len(tracks) + 1)
    processes = {group: number for number, group in enumerate(groups, start=1)}
    for group, tracks in groups.items():
        pid = processes[group]
        yield _named("process_name", pid, 0, group)
        for track, tid in tracks.items():
            yield _named("thread_name", pid, tid, track)
    # On one track the outer of two spans that begin together comes first.
    for span in sorted(spans, key=lambda span: (span.began, -span.ended)):
        began, ended = _microseconds(span.began), _microseconds(span.ended)
        yield {
            "name": span.name,
            "cat": span.group.partition(" of ")[0],
            "ph": "X",
            "ts": began,
            "dur": max(0, ended - began),
            "pid": processes[span.group],
            "tid": groups[span.group][span.track],
            "args": dict(span.args),
        }


def areal_events(directory: Path) -> Iterator[dict[str, Any]]:
    """What AReaL's own tracer wrote, on our clock."""
    for number, path in enumerate(sorted((directory / "areal").glob("logs/**/perf_tracer/**/*.jsonl"))):
        events = list(_newest(path))
        clocks = [event for event in events if event.get("name") == CLOCK and "time" in (event.get("args") or {})]
        if not clocks:
            continue
        offset = _microseconds(clocks[0]["args"]["time"]) - int(clocks[0]["ts"])
        pid = 1000 + number
        yield _named("process_name", pid, 0, f"AReaL, {path.stem}")
        for event in events:
            if event.get("name") in (CLOCK, "process_name") or not isinstance(event.get("ph"), str):
                continue
            moved = {"ts": int(event["ts"]) + offset} if event["ph"] != "M" else {"ts": 0}
            yield {"tid": 0, **event, **moved, "pid": pid}


def _newest(path: Path) -> Iterator[dict[str, Any]]:
    """The events in the first line, which tells the clock, and in the last lines of a file."""
    with path.open("rb") as file:
        lines = [file.readline()]
        file.seek(max(file.tell(), path.stat().st_size - _AREAL_BYTES))
        lines += file.read().splitlines()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _microseconds(seconds: float) -> int:
    return round(1e6 * seconds)
