"""The training sequence of groups, submitted to rollout workers and handed out a batch a step."""

from __future__ import annotations

import time
from typing import Any

from areal.infra import RolloutController

from cua_agent.envs.pool import PoolStats
from trainers.areal.cluster.group_reports import Report, unpack
from trainers.areal.rollout.group_stream import FailureCount, ReadyGroup, count_accepted
from trainers.areal.tensors import TensorDict
from trainers.config import TrainConfig
from trainers.protocol import Collected, Group, OnDone, Usage

_POLL_S = 1.0
_SILENCE_S = 10.0
"""How long no answer comes before workers are asked whether they live: AReaL waits an hour for one that died."""
WORKFLOW = "trainers.areal.cluster.worker_engines.PlayGroup"
"""What AReaL's workers run for every group."""


class WorkerLostError(RuntimeError):
    """A rollout worker does not answer any more."""


class ControllerStream:
    """Groups from AReaL's `RolloutController`, whose `StalenessManager` bounds how many are started.

    A slow group may still come too late; then it is dropped and another one played, so that no token is older than
    `rollout.max_staleness` versions when it is trained on. A batch has a multiple of `share` groups: as many for every
    training worker.
    """

    def __init__(self, config: TrainConfig, controller: RolloutController, share: int) -> None:
        self._config = config
        self._controller = controller
        self._share = share
        self._next = 0
        self._running: set[int] = set()
        self._ready: dict[int, ReadyGroup] = {}
        self._refills = self._taken = 0
        self._failures = FailureCount(config.areal.max_failures)
        self._clock = time.perf_counter()
        self._stats: dict[str, PoolStats] = {}  # by worker: its newest, and those that steps have reported
        self._reported: dict[str, PoolStats] = {}

    @property
    def position(self) -> int:
        """The first group of the sequence that no training step has seen."""
        return min([*self._running, *self._ready], default=self._next)

    def restore(self, position: int) -> None:
        """Start the training sequence at `position`, with a policy of the controller's present version."""
        self._next = position
        self._controller.staleness_manager.on_version_recovered(self._controller.get_version())

    def collect(self, on_done: OnDone) -> tuple[Collected, list[TensorDict], Usage]:
        """The next batch, in the order of the training sequence. Raises `TooManyFailures` and `WorkerLostError`."""
        started, self._refills = time.perf_counter(), 0
        wanted = self._config.rollout.groups_per_step
        collected = Collected()
        self._drop_stale(collected)
        heard = time.perf_counter()
        while not self._complete():
            self._top_up()
            for answer in self._controller.wait(1, timeout=_POLL_S, raise_timeout=False):
                self._settle(answer, collected)
                heard = time.perf_counter()
            if time.perf_counter() - heard > _SILENCE_S:
                self._check_workers()
                heard = time.perf_counter()
            on_done(min(len(self._ready), wanted), wanted)
        chosen = sorted(self._ready)[: self._batch_size()]
        batch = [self._ready.pop(index) for index in chosen]
        collected.kept += [ready.group for ready in batch]
        self._taken = len(batch)
        return collected, [ready.tensors for ready in batch], self._usage(time.perf_counter() - started)

    def published(self) -> None:
        """A step has trained on the last batch and its version is served. AReaL admits by counting accepted groups:
        places that stayed empty count like groups, or the bound would grow with them."""
        count_accepted(self._controller.staleness_manager, self._config.rollout.groups_per_step - self._taken)
        self._taken = 0
        self._top_up()

    def _top_up(self) -> None:
        rollout = self._config.rollout
        while len(self._running) + len(self._ready) < (rollout.max_staleness + 1) * rollout.groups_per_step:
            self._controller.submit({"index": self._next}, WORKFLOW)
            self._running.add(self._next)
            self._next += 1

    def _settle(self, answer: dict[str, Any] | None, collected: Collected) -> None:
        if answer is None:
            self._check_workers()
            raise WorkerLostError("a rollout worker did not answer")
        report: Report = unpack(answer.pop("report"))
        finished = report.finished
        self._running.remove(finished.index)
        self._stats[report.worker] = report.stats
        collected.lost += finished.lost
        if answer and not self._is_stale(finished.group):
            self._failures.ended()
            self._ready[finished.index] = ReadyGroup(finished.group, answer)
            return
        count_accepted(self._controller.staleness_manager, -1)
        if answer:
            collected.lost.append(f"{finished.group.spec.group_id}: too old when it was done")
        elif finished.group.episodes:
            self._failures.ended()
            self._refills += 1
            collected.filtered.append(finished.group)
        else:
            self._failures.lost(finished, collected)

    def _check_workers(self) -> None:
        """Raise AReaL's `SchedulerError` when one is dead."""
        self._controller.scheduler.get_workers(role="rollout")

    def _drop_stale(self, collected: Collected) -> None:
        for index in [index for index, ready in self._ready.items() if self._is_stale(ready.group)]:
            group = self._ready.pop(index).group
            count_accepted(self._controller.staleness_manager, -1)
            collected.lost.append(f"{group.spec.group_id}: too old when its turn came")

    def _is_stale(self, group: Group) -> bool:
        oldest = min(int(row.versions[row.loss_mask == 1].min()) for row in group.rows if row.loss_mask.any())
        present: int = self._controller.get_version()
        return oldest < present - self._config.rollout.max_staleness

    def _batch_size(self) -> int:
        return min(len(self._ready), self._config.rollout.groups_per_step) // self._share * self._share

    def _complete(self) -> bool:
        """A full batch, or what there is when the refills of all its places are used up."""
        rollout, size = self._config.rollout, self._batch_size()
        used_up = self._refills >= rollout.max_refills * rollout.groups_per_step
        return size == rollout.groups_per_step or (used_up and size > 0)

    def _usage(self, waited_s: float) -> Usage:
        """Environments work all the time, so their use is measured from batch to batch."""
        now = time.perf_counter()
        did = [stats - self._reported.get(worker, PoolStats()) for worker, stats in self._stats.items()]
        capacity_s = (now - self._clock) * self._config.rollout.concurrency
        self._clock, self._reported = now, dict(self._stats)
        uses = (Usage(0.0, each.busy_s, 0.0, each.wait_s, each.alive_s) for each in did)
        return sum(uses, Usage(wall_s=waited_s, capacity_s=capacity_s))
