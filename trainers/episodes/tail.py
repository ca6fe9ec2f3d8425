"""Reading files that others still write to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a row stands: `length` bytes of `path` from `offset` on."""

    path: Path
    offset: int
    length: int

    def read(self) -> dict[str, Any]:
        """The row; empty where it is not there any more."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return _mapping(file.read(self.length))
        except OSError:
            return {}


@dataclass
class Tail:
    """A JSON-lines file, read from where the last reading ended; a line counts when its end is written."""

    path: Path
    offset: int = 0

    def read(self) -> list[tuple[Place, dict[str, Any]]]:
        """The new rows that are mappings, and where they stand."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read()
        except OSError:
            return []
        found = []
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            place = Place(self.path, self.offset, len(line))
            self.offset += len(line)
            if row := _mapping(line):
                found.append((place, row))
        return found


def _mapping(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
