"""Groups between submission and training, under the staleness rule; whoever plays them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cua_agent.envs.base import EnvironmentFailure
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.areal.rollout.staleness import hand_out, is_too_old, may_start
from trainers.areal.tensors import TensorDict
from trainers.config import RolloutConfig
from trainers.protocol import Collected, Group


class TooManyFailures(EnvironmentFailure):
    """Group after group was lost; the message names the last cause."""


@dataclass(frozen=True)
class ReadyGroup:
    """A group with signal that waits for its training step, its tensors, and the version of its oldest token."""

    group: Group
    tensors: TensorDict
    start: int


@dataclass
class GroupWindow:
    """The groups that are outstanding, and what has become of others since the last batch.

    A step has `rollout.groups_per_step` places. A group without signal gives its place to a new one,
    `rollout.max_refills` times over; then the place stays empty. A group that is lost, or too old when it is done, is
    replaced; `max_failures` lost in a row end the run. A batch has a multiple of `multiple` groups.
    """

    rollout: RolloutConfig
    max_failures: int
    multiple: int = 1
    running: dict[int, int] = field(default_factory=dict)
    """By the group's number in the training sequence: the refills it stands for."""
    ready: dict[int, ReadyGroup] = field(default_factory=dict)
    empty: int = 0
    filtered: dict[int, Group] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    lost_in_a_row: int = 0

    @property
    def vacant(self) -> int:
        """How many groups may be started."""
        held = len(self.running) + len(self.ready)
        return may_start(held, self.empty, bound=self.rollout.max_staleness, places=self.rollout.groups_per_step)

    @property
    def done(self) -> int:
        """How many of the next batch's places are settled."""
        return min(len(self.ready) + self.empty, self.rollout.groups_per_step)

    def first(self, otherwise: int) -> int:
        """The first group that no training step has seen; `otherwise` when there is none."""
        return min([*self.running, *self.ready, *self.filtered], default=otherwise)

    def collected(self) -> Collected:
        """What has come since the last batch, besides the groups that wait for the next one."""
        filtered = [self.filtered[index] for index in sorted(self.filtered)]  # not as they came to their end
        return Collected([], filtered, list(self.lost), list(self.dropped))

    def settle(self, finished: FinishedGroup, tensors: TensorDict | None, version: int) -> int | None:
        """A group ended, with tensors if it carries signal. Returns the refills that a group to be played in its place
        stands for; None when none is to be played. Raises `TooManyFailures`."""
        refills = self.running.pop(finished.index)
        self.lost += finished.lost
        if not finished.group.episodes:
            self._count_failure(finished)
            return refills
        self.lost_in_a_row = 0
        if tensors is None:
            return self._refill(finished, refills)
        start = _oldest(finished.group, version)
        if is_too_old(start, version, bound=self.rollout.max_staleness):
            self.dropped.append(finished.group.spec.group_id)
            return refills
        self.ready[finished.index] = ReadyGroup(finished.group, tensors, start)
        return None

    def drop_old(self, version: int) -> None:
        """Make room for groups in place of those that an update of `version` can't train on any more."""
        for index, ready in list(self.ready.items()):
            if is_too_old(ready.start, version, bound=self.rollout.max_staleness):
                self._drop(index)

    def hand_out(self, starts: Mapping[int, int], version: int) -> tuple[Collected, list[ReadyGroup]] | None:
        """The batch of `version`, in the order of the training sequence, and all that has come since the last one; None
        while it has to wait. `starts` of running groups: one that is not in it begins at `version` or later."""
        batch = hand_out(
            [starts.get(index, version) for index in self.running],
            {index: ready.start for index, ready in self.ready.items()},
            self.empty,
            version,
            bound=self.rollout.max_staleness,
            places=self.rollout.groups_per_step,
            multiple=self.multiple,
        )
        if batch is None:
            return None
        for index in batch.dropped:
            self._drop(index)
        self.empty -= batch.empty - len(batch.dropped)
        groups = [self.ready.pop(index) for index in batch.groups]
        collected = self.collected()
        collected.kept = [ready.group for ready in groups]
        self.filtered, self.lost, self.dropped = {}, [], []
        return collected, groups

    def _refill(self, finished: FinishedGroup, refills: int) -> int | None:
        self.filtered[finished.index] = finished.group
        if refills < self.rollout.max_refills:
            return refills + 1
        self.empty += 1
        return None

    def _drop(self, index: int) -> None:
        self.dropped.append(self.ready.pop(index).group.spec.group_id)

    def _count_failure(self, finished: FinishedGroup) -> None:
        self.lost_in_a_row += 1
        if finished.error is not None:
            self.lost.append(f"{finished.group.spec.group_id}: {type(finished.error).__name__}: {finished.error}")
        if self.lost_in_a_row >= self.max_failures:
            what = f"{self.lost_in_a_row} groups in a row were lost"
            why = self.lost[-1] if self.lost else "unknown"
            raise TooManyFailures(f"{what}; the last: {why}") from finished.error


def _oldest(group: Group, otherwise: int) -> int:
    """The version of the oldest token that was sampled for the group; `otherwise` when there is none."""
    played = (*group.episodes, *group.branches)
    trained = [row.versions[row.loss_mask == 1] for episode in played for row in episode]
    return min((int(versions.min()) for versions in trained if versions.size), default=otherwise)
