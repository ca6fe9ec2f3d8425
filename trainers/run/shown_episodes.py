"""A few episodes of an evaluation, for trackers that show tables and images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.episodes.files import EPISODES, SCREENS, STEPS
from trainers.episodes.tail import Tail

MOST = 16
"""Episodes of one evaluation that are shown."""
COLUMNS = ("episode", "task", "goal", "outcome", "reward", "turns", "calls")
_CALLS = 500  # characters
_PATIENCE_S, _LOOK_S = 2.0, 0.05


@dataclass(frozen=True)
class ShownEpisode:
    """`cells` under `COLUMNS`, secrets masked, and the last screen, where it is kept."""

    cells: tuple[str | float, ...]
    screen: Image.Image | None


@dataclass
class EvaluationReader:
    """Reads what the processes of the run in `directory` recorded of its evaluations, as far as it is written."""

    directory: Path
    _tails: dict[Path, Tail] = field(default_factory=dict)

    def newest(self, version: int, expected: int) -> list[ShownEpisode]:
        """At most `MOST` evaluation episodes of policy `version` that were written since the last call, failures
        first. A moment is waited for those of the `expected` ones that are just being written."""
        rows = self._read(version)
        deadline = time.monotonic() + _PATIENCE_S
        while len(rows) < expected and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            rows += self._read(version)
        rows.sort(key=lambda row: row.get("outcome") == "success")
        return [ShownEpisode(_cells(row), self._screen(row.get("final"))) for row in rows[:MOST]]

    def _read(self, version: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted((self.directory / EPISODES).glob("*.jsonl")):
            if path.name != STEPS:
                rows += [row for _, row in self._tails.setdefault(path, Tail(path)).read() if row.get("evaluation")]
        return [row for row in rows if row.get("version") == version and row.get("outcome") != "infra_error"]

    def _screen(self, name: Any) -> Image.Image | None:
        if not isinstance(name, str):
            return None
        try:
            with Image.open(self.directory / EPISODES / SCREENS / name) as image:
                return image.convert("RGB")
        except OSError:  # it made room for newer ones
            return None


def _cells(row: Mapping[str, Any]) -> tuple[str | float, ...]:
    turns = [turn for turn in row.get("turns") or [] if isinstance(turn, dict)]
    calls = " · ".join(str(turn.get("action") or turn.get("text") or "") for turn in turns)
    texts = [str(row.get(key) or "") for key in ("id", "task", "goal", "outcome")]
    return (*texts, float(row.get("reward") or 0.0), float(len(turns)), calls[:_CALLS])
