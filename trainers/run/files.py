"""Reading what a run left in its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[Any]:
    """The rows of a JSON-lines file, none where there is no file; lines that a crash cut short are left out."""
    return [row for _, row in _parsed(path) if row is not _DAMAGED]


def damaged_lines(path: Path) -> list[int]:
    """The lines (from 1) that hold no JSON, but for the last one, which a crash may have cut short."""
    parsed = _parsed(path)
    return [number for number, row in parsed[:-1] if row is _DAMAGED]


_DAMAGED = object()


def _parsed(path: Path) -> list[tuple[int, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(number, _row(line)) for number, line in enumerate(lines, start=1)]


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return _DAMAGED


def spent_minutes(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Minutes of training up to and including each row of `metrics.jsonl`; evaluations do not count."""
    return [*accumulate((row.get("step_s") or 0.0) / 60 for row in rows)]


def last_error(directory: Path) -> str | None:
    """The exception in a run's `error.log`, first line of its message; None where there is no such file."""
    log = directory / "error.log"
    if not log.is_file():
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    after = lines[frames[-1] + 1 :] if frames else lines
    return next((line for line in after if not line.startswith(" ")), "error.log holds no exception")
