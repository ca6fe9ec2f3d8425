"""Where a run directory holds what is recorded of its episodes.

episodes/<process>.jsonl           a row an episode that ended, of the process that played it
episodes/steps.jsonl               a row a group that a step used or left, and a row an evaluation
episodes/screens/<part>/<n>.webp   screenshots; the oldest parts are deleted when they exceed their budget
episodes/live-<process>.json       what the process plays at the moment; replaced atomically
episodes/best.json                 the policy version that evaluated best, whose screenshots are never deleted
episodes/system.txt                what every episode's prompt begins with
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EPISODES, SCREENS, STEPS, BEST, SYSTEM = "episodes", "screens", "steps.jsonl", "best.json", "system.txt"
LIVE = "live-"
EVALUATION = "eval-"
"""What the name of an evaluation's episode begins with."""


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Append to a JSON-lines file, all rows in one write."""
    lines = "".join(json.dumps(row, default=float) + "\n" for row in rows)
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(lines)


def replace_json(path: Path, content: Any) -> None:
    """Write a file that readers see whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, default=float), encoding="utf-8", errors="replace")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty when it is not there, or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
