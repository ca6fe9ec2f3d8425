"""Rows of what began and ended when, in seconds since the epoch.

timeline/<process>.jsonl       the newest rows that the process wrote; `run` is the one that keeps the run's books
timeline/<process>.old.jsonl   those before them; what is older is gone
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NewType

TIMELINE, RUN = "timeline", "run"
_MEGABYTE = 1e6

Row = NewType("Row", dict[str, Any])
"""A row that `episode_row`, `step_row` or `evaluation_row` made."""


@dataclass
class TimelineLog:
    """Appends rows to the files of `process` of the run in `directory`, which keep the newest `megabytes`; none when
    that is 0. For one thread. Raises `OSError`."""

    directory: Path
    process: str
    megabytes: float
    _size: int | None = field(default=None, init=False)

    def append(self, row: Row) -> None:
        """Write a row."""
        if self.megabytes <= 0:
            return
        path = self.directory / TIMELINE / f"{self.process}.jsonl"
        if self._size is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._size = path.stat().st_size if path.exists() else 0
        line = json.dumps(row).encode() + b"\n"
        if self._size + len(line) > self.megabytes * _MEGABYTE / 2:
            if self._size:
                path.replace(path.with_suffix(".old.jsonl"))
            self._size = 0
        with path.open("ab") as file:
            file.write(line)
        self._size += len(line)


def episode_row(
    name: str, task: str, device: int, version: int, began: float, ended: float, phases: Sequence[tuple[str, float]]
) -> Row:
    """An episode on a device; each of `phases` (what it waited for) lasts from its time to the next one's."""
    return Row(
        {
            "episode": name,
            "task": task,
            "device": device,
            "version": version,
            "began": round(began, 4),
            "ended": round(ended, 4),
            "phases": [[what, round(since, 4)] for what, since in phases],
        }
    )


def step_row(step: int, collected: float, times: Mapping[str, float]) -> Row:
    """A training step whose batch was complete at `collected`; `times` are seconds: `rollout_s`, `train_s`, `sync_s`,
    and the `capacity_s` up to `collected` (devices x seconds) that the step's environment figures are about."""
    return Row({"step": step, "collected": round(collected, 4), **{key: round(s, 4) for key, s in times.items()}})


def evaluation_row(split: str, step: int, began: float, ended: float) -> Row:
    """An evaluation after `step`."""
    return Row({"evaluation": split, "step": step, "began": round(began, 4), "ended": round(ended, 4)})


def read_timeline(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each process of the run in `directory`, oldest first; damaged lines are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    files = (directory / TIMELINE).glob("*.jsonl")
    for path in sorted(files, key=lambda path: (_process(path), not path.name.endswith(".old.jsonl"))):
        found.setdefault(_process(path), []).extend(_rows(path))
    return found


def _process(path: Path) -> str:
    return path.name.removesuffix(".jsonl").removesuffix(".old")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
