"""A few held-out episodes that every arm played, to look at side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cua_agent.image_bytes import image_uri
from trainers.compare.arms import Arm
from trainers.compare.runs import Run
from trainers.episodes.files import EPISODES, SCREENS
from trainers.episodes.tail import Tail

MOST = 4
"""Episodes that are shown of an arm."""
_FRAMES = 8
_WIDTH = 160  # of a shown screen in pixels

Row = Mapping[str, Any]
Key = tuple[str, int]
"""Task and seed."""


@dataclass(frozen=True)
class Frame:
    """A screen as a data URI ("" where none is kept) and what was done on it, or how it ended."""

    screen: str
    text: str


@dataclass(frozen=True)
class Film:
    """How an arm's run played a sample."""

    arm: int
    run: str
    outcome: str
    frames: tuple[Frame, ...]
    left_out: int


@dataclass(frozen=True)
class Sample:
    """The same task from the same seed, with the film of each arm."""

    goal: str
    task: str
    seed: int
    films: tuple[Film, ...]


def samples_of(arms: Sequence[Arm]) -> list[Sample]:
    """Held-out episodes of the last evaluations that were recorded, of tasks and seeds that all arms have; those that
    ended differently first. Of each arm it is its first run that recorded any; none unless all arms have one."""
    played = [next(((run, rows) for run in arm.counted if (rows := _last_evaluation(run))), None) for arm in arms]
    known = [each for each in played if each is not None]
    if len(known) < len(arms) or not known:
        return []
    shared = set.intersection(*(set(rows) for _, rows in known))

    def outcomes(key: Key) -> set[str]:
        return {str(rows[key].get("outcome")) for _, rows in known}

    chosen = sorted(shared, key=lambda key: (len(outcomes(key)) == 1, key))[:MOST]
    return [
        Sample(
            str(known[0][1][key].get("goal")),
            *key,
            tuple(_film(place, run, rows[key]) for place, (run, rows) in enumerate(known)),
        )
        for key in chosen
    ]


def _last_evaluation(run: Run) -> dict[Key, Row]:
    """The episodes of the run's newest evaluated policy, without lost ones."""
    rows = [row for row in _rows(run.directory) if row.get("evaluation") and row.get("outcome") != "infra_error"]
    newest = max((row["version"] for row in rows), default=0)
    return {(row["task"], row["seed"]): row for row in rows if row["version"] == newest}


def _rows(directory: Path) -> Iterator[Row]:
    for path in sorted((directory / EPISODES).glob("*.jsonl")):
        for _, row in Tail(path).read():
            whole = isinstance(row.get("task"), str) and all(type(row.get(key)) is int for key in ("seed", "version"))
            if whole:
                yield row


def _film(arm: int, run: Run, row: Row) -> Film:
    turns = [turn for turn in row.get("turns") or [] if isinstance(turn, dict)]
    screens = run.directory / EPISODES / SCREENS
    outcome = str(row.get("outcome")).replace("_", " ")
    frames = [
        Frame(_picture(screens, turn.get("screen")), str(turn.get("action") or "malformed call"))
        for turn in turns[:_FRAMES]
    ]
    frames.append(Frame(_picture(screens, row.get("final")), outcome))
    return Film(arm, run.name, outcome, tuple(frames), max(0, len(turns) - _FRAMES))


def _picture(screens: Path, name: Any) -> str:
    """A small copy of a screen, as the page holds it."""
    path = (screens / str(name)).resolve()
    if not name or not path.is_relative_to(screens.resolve()) or not path.is_file():
        return ""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:
        return ""
    if small.width > _WIDTH:
        small = small.resize((_WIDTH, max(1, round(small.height * _WIDTH / small.width))))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return image_uri(buffer.getvalue(), "webp")
