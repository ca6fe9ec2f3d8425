"""Reading what a run left in its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, none where there is no file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def spent_minutes(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Minutes of training up to and including each row of `metrics.jsonl`; evaluations do not count."""
    return [*accumulate(row["step_s"] / 60 for row in rows)]


def last_error(directory: Path) -> str | None:
    """The exception in a run's `error.log`, first line of its message; None where there is no such file."""
    log = directory / "error.log"
    if not log.is_file():
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    after = lines[frames[-1] + 1 :] if frames else lines
    return next((line for line in after if not line.startswith(" ")), "error.log holds no exception")
