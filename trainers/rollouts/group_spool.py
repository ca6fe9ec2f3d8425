"""Finished groups that no checkpoint covers yet, on disk: what goes on with a killed run need not play them again.

A file holds a group's rows as a recorded batch. Its name tells the group's, and, once a step has trained on the group,
that step: `g000012.safetensors`, `g000012.step000007.safetensors`. When a checkpoint of step 7 is whole, the latter is
deleted. A run that goes on from step 6 takes both up: step 7 was lost, and the group is trained on for the first time.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cua_agent.tasks import CUATask
from trainers.protocol import Batch, Group, GroupSpec
from trainers.rollouts.trajectory_store import TrajectoryFileError, load_batch, sampled_versions, save_batch

SPOOL = "spool"
logger = logging.getLogger(__name__)
_FILE = re.compile(r"(g\d+)(?:\.step(\d+))?\.safetensors")


@dataclass(frozen=True)
class Entry:
    """A group's file, and the step that trained on it, if one did."""

    path: Path
    group_id: str
    step: int | None


@dataclass(frozen=True)
class TakenUp:
    """Groups of former runs: how many are `usable`; `lost` ones were sampled with weights that no checkpoint holds,
    `late` ones are too old to be trained on."""

    usable: int = 0
    lost: int = 0
    late: int = 0

    def __bool__(self) -> bool:
        return bool(self.usable or self.lost or self.late)

    def __str__(self) -> str:
        dropped = [(self.lost, "sampled with weights that are lost"), (self.late, "too old for rollout.max_staleness")]
        words = [f"{count} dropped: {why}" for count, why in dropped if count]
        return "; ".join([f"{self.usable} finished groups are not played again", *words])


@dataclass
class GroupSpool:
    """At most `keep` groups in `directory`; 0: none, and nothing is taken up. Methods may be called by any thread."""

    directory: Path
    keep: int

    def put(self, group: Group) -> None:
        """A group was played. Where it cannot be written, that is told once: training does not need it."""
        if self.keep == 0 or not group.rows or len(list(self._entries())) >= self.keep:
            return
        path = self.directory / f"{group.spec.group_id}.safetensors"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_batch(path, Batch(group.rows, [0.0] * len(group.rows)))
        except OSError as error:
            self.keep = 0
            logger.warning("finished groups are not kept any further: %s", error)

    def take(self, spec: GroupSpec, tasks: Mapping[str, CUATask]) -> Group | None:
        """The group as it was played already; None when it has to be played. By difficulty another of `tasks` may have
        been drawn for it than is drawn now."""
        path = self.directory / f"{spec.group_id}.safetensors"
        if self.keep == 0 or not path.is_file():
            return None
        try:
            rows = load_batch(path).trajectories
        except TrajectoryFileError:
            return None
        task = tasks.get(rows[0].task_id)
        if task is None or any((row.task_id, row.seed) != (task.id, spec.seed) for row in rows):
            return None
        episodes: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            episodes.setdefault(row.episode_id, []).append(index)
        played = [[rows[index] for index in members] for members in episodes.values()]
        whole = [rows for rows in played if rows[0].fork is None]
        return Group(replace(spec, task=task), whole, [rows for rows in played if rows[0].fork is not None])

    def trained(self, step: int, group_ids: Iterable[str]) -> None:
        """A step has used these groups, or dropped them."""
        for group_id in group_ids if self.keep else ():
            path = self.directory / f"{group_id}.safetensors"
            if path.is_file():
                path.rename(path.with_suffix(f".step{step:06d}.safetensors"))

    def covered(self, step: int) -> None:
        """There is a checkpoint of `step`: what was used up to there is not needed any more."""
        for entry in self._entries():
            if entry.step is not None and entry.step <= step:
                entry.path.unlink(missing_ok=True)

    def take_up(self, former: Iterable[Path], *, step: int, version: int, bound: int) -> TakenUp:
        """Move here what the spools of `former` runs hold that a run of `version` after `step` may train on, with
        tokens at most `bound` versions old; the rest is deleted."""
        counts = {"usable": 0, "lost": 0, "late": 0}
        for directory in former:
            for entry in GroupSpool(directory, self.keep)._entries():
                if entry.step is None or entry.step > step:
                    fate = _fate(entry.path, version, bound)
                    counts[fate] += 1
                    if fate == "usable":
                        self.directory.mkdir(parents=True, exist_ok=True)
                        shutil.move(entry.path, self.directory / f"{entry.group_id}.safetensors")
            shutil.rmtree(directory, ignore_errors=True)
        return TakenUp(**counts)

    def clear(self) -> None:
        """The run is over."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _entries(self) -> Iterator[Entry]:
        for path in self.directory.glob("*.safetensors") if self.directory.is_dir() else ():
            if match := _FILE.fullmatch(path.name):
                yield Entry(path, match[1], int(match[2]) if match[2] else None)


NO_SPOOL = GroupSpool(Path(), keep=0)


def _fate(path: Path, version: int, bound: int) -> str:
    try:
        versions = sampled_versions(path)
    except TrajectoryFileError:
        return "lost"
    if versions and max(versions) > version:
        return "lost"
    return "late" if versions and min(versions) < version - bound else "usable"
