"""Past successes that stand in for some of the episodes of a group that failed as a whole."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from cua_agent.trajectory import NO_VERSION
from trainers.config import TrainConfig
from trainers.protocol import Batch, Episode, Files, Group
from trainers.rollouts.trajectory_store import encode_batch, load_batch

FILE = "successes.safetensors"
"""In a checkpoint."""


class SuccessPool:
    """The newest successes of each task, in this process's memory; thread-safe.

    A group without a success teaches nothing. With replay the last of its failures make room for successes of the same
    task, from other starts, as they were sampled: their tokens keep log-probs and versions, so the loss corrects for
    their age, and staleness counts it. As in Xu et al., "MobileRL" (arXiv 2509.18119), and DART (arXiv 2509.23866).
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.replay
        self._most = int(config.replay.share * config.rollout.group_size)
        self._successes: dict[str, deque[Episode]] = {}
        self._lock = threading.Lock()

    def files(self) -> Files:
        """What a checkpoint keeps of it, as it is at this moment: nothing while it is empty."""
        with self._lock:
            rows = [row for episodes in self._successes.values() for episode in episodes for row in episode]
        return {FILE: partial(encode_batch, Batch(rows, [0.0] * len(rows)))} if rows else {}

    def restore(self, checkpoint: Path) -> None:
        """Go on with what `checkpoint` kept. Raises `TrajectoryFileError`."""
        file = checkpoint / FILE
        rows = load_batch(file).trajectories if self._most and file.is_file() else []
        with self._lock:
            self._successes.clear()
            for _, episode in groupby(rows, key=lambda row: row.episode_id):
                first, *further = episode
                self._of(first.task_id).append([first, *further])

    def keep(self, groups: Iterable[Group]) -> None:
        """A step collected `groups`: from now on their successes may be replayed. Not before it did: else what a group
        is trained with would hang on which group of its step ended first, and on whether the run was interrupted."""
        if self._most == 0:
            return
        with self._lock:
            for group in groups:
                self._of(group.spec.task.id).extend(episode for episode in group.episodes if episode[0].success)

    def completed(self, group: Group, version: int) -> Group:
        """`group`, which policy `version` played last, with the successes it is trained with."""
        if self._most == 0 or any(episode[0].success for episode in (*group.episodes, *group.branches)):
            return group
        with self._lock:
            kept = self._of(group.spec.task.id)
            young = [episode for episode in kept if version - _oldest(episode) <= self._config.max_age]
        room = min(self._most, len(group.episodes) - 1)
        chosen = young[-room:] if room > 0 else []
        name = group.spec.group_id
        return replace(group, replayed=[_renamed(rows, name, place) for place, rows in enumerate(chosen)])

    def _of(self, task: str) -> deque[Episode]:
        return self._successes.setdefault(task, deque(maxlen=self._config.per_task))


def _renamed(episode: Episode, group_id: str, place: int) -> Episode:
    """The episode as a member of another group."""
    return [replace(row, group_id=group_id, episode_id=f"{group_id}-replay{place}") for row in episode]


def _oldest(episode: Episode) -> int:
    """The version of its oldest sampled token."""
    return min(int(row.versions[row.versions != NO_VERSION].min()) for row in episode if (row.versions >= 0).any())
