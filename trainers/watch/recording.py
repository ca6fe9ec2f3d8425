"""What was recorded of a run and all it was resumed from, as far as it is written by now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.episodes.files import EPISODES, SCREENS, STEPS, SYSTEM
from trainers.episodes.tail import Place, Tail
from trainers.run.lineage import Part, is_step, lineage_of
from trainers.watch.findings import Finding, beside, findings, touches_of

_SAID = 400
"""Characters of an episode's calls that a search looks at."""

GroupKey = tuple[int, str]
"""The part of the lineage, and the group's name there."""


@dataclass(frozen=True)
class Entry:
    """An episode: its part of the lineage, where its row stands, the row without what takes room, and what it touched
    (of one that failed)."""

    part: int
    place: Place
    about: Mapping[str, Any]
    touches: Sequence[Sequence[Mapping[str, Any]]]


@dataclass
class _Reader:
    """One directory of the lineage."""

    directory: Path
    tails: dict[Path, Tail] = field(default_factory=dict)

    def rows(self, name: str | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """New rows of the file called `name`; of all other JSON-lines files without one."""
        files = sorted((self.directory / EPISODES).glob("*.jsonl"))
        for path in files:
            if (path.name == STEPS) if name else (path.name != STEPS):
                yield from self.tails.setdefault(path, Tail(path)).read()


class Recording:
    """The episodes, groups and evaluations of the run in `directory`; `refresh` reads what is new. For one thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts: tuple[Part, ...] = lineage_of(directory).parts
        self.entries: list[Entry] = []
        self.groups: dict[GroupKey, dict[str, Any]] = {}
        self.evaluations: list[dict[str, Any]] = []
        self._touched: dict[str, set[str]] = {}
        self._readers = [_Reader(part.directory) for part in self.parts]

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.directory.absolute().name

    def refresh(self) -> None:
        """Read what was written since the last time."""
        for part, reader in enumerate(self._readers):
            for _, row in reader.rows(STEPS):
                self._step_row(part, row)
            for place, row in reader.rows():
                won, touches = row.get("outcome") == "success", touches_of(row)
                self.entries.append(Entry(part, place, _about(row), [] if won else touches))
                if won:
                    names = (near[0]["place"]["name"] for near in touches)
                    self._touched.setdefault(str(row.get("task")), set()).update(names)

    def episodes(self) -> Iterator[tuple[int, Entry]]:
        """All episodes that belong to the lineage, with their numbers; what a part did behind the beginning of the next
        one was lost."""
        for number, entry in enumerate(self.entries):
            if self._counts(entry):
                yield number, entry

    def step_of(self, entry: Entry) -> int | None:
        """The step that used or left the episode's group, or after which it was an evaluation's; None: none yet."""
        if entry.about["evaluation"]:
            return next((row["step"] for row in self.evaluations if _is_of(row, entry)), None)
        group = self.groups.get((entry.part, str(entry.about["group"])))
        return None if group is None else int(group["step"])

    def group_of(self, entry: Entry) -> Mapping[str, Any]:
        """What became of the episode's group; empty while nothing did."""
        return self.groups.get((entry.part, str(entry.about["group"])), {})

    def findings_of(self, entry: Entry) -> list[Finding]:
        """What stands out in an episode, also beside the successes of its task."""
        names = self._touched.get(str(entry.about["task"]), set())
        return [*(beside(entry.touches, names) if names else ()), *entry.about["findings"]]

    def screen(self, part: int, name: str) -> Path:
        """The file of a screen."""
        return self.parts[part].directory / EPISODES / SCREENS / name

    def system(self) -> str:
        """What every prompt begins with."""
        try:
            return (self.directory / EPISODES / SYSTEM).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _step_row(self, part: int, row: dict[str, Any]) -> None:
        if not is_step(row.get("step")) or row["step"] > self._ends(part):
            return
        if "evaluation" in row:
            self.evaluations.append({**row, "part": part})
        elif isinstance(row.get("group"), str):
            self.groups[part, row["group"]] = row

    def _counts(self, entry: Entry) -> bool:
        last = entry.part == len(self.parts) - 1
        return last or self.step_of(entry) is not None

    def _ends(self, part: int) -> float:
        following = self.parts[part + 1 :]
        return min((each.begins for each in following), default=float("inf"))


def _is_of(evaluation: Mapping[str, Any], entry: Entry) -> bool:
    return (evaluation["part"], evaluation.get("version")) == (entry.part, entry.about["version"])


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    """What lists and searches show of an episode."""
    turns = [turn for turn in row.get("turns") or [] if isinstance(turn, dict)]
    named = ("id", "group", "task", "category", "goal", "seed", "version")
    keys = (*named, "time", "outcome", "score", "reward", "device")
    said = " · ".join(str(turn.get("action") or turn.get("text") or "") for turn in turns)
    return {
        **{key: row.get(key) for key in keys},
        "evaluation": bool(row.get("evaluation")),
        "failure": row.get("failure"),
        "turns": len(turns),
        "said": said[:_SAID],
        "findings": findings(row),
    }
