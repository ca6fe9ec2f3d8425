"""The training sequence of groups, submitted to rollout workers and handed out a batch a step."""

from __future__ import annotations

import time
from typing import Any

from areal.infra import RolloutController

from cua_agent.envs.pool import PoolStats
from trainers.areal.cluster.group_reports import unpack_report
from trainers.areal.rollout.group_stream import count_accepted
from trainers.areal.rollout.group_window import GroupWindow
from trainers.areal.tensors import TensorDict
from trainers.config import TrainConfig
from trainers.protocol import Collected, GroupSpec, OnCollecting, Usage
from trainers.rollouts.difficulty import TaskDifficulty
from trainers.rollouts.task_sampler import training_sampler, training_tasks

_POLL_S = 1.0
_SILENCE_S = 10.0
"""How long no answer comes before workers are asked whether they live: AReaL waits an hour for one that died."""
WORKFLOW = "trainers.areal.cluster.worker_engines.PlayGroup"
"""What AReaL's workers run for every group."""


class WorkerLostError(RuntimeError):
    """A rollout worker does not answer any more."""


class ControllerStream:
    """Groups from AReaL's `RolloutController`, handed out under the rule of `staleness`.

    The controller does not see when a worker begins a group: a running group counts from the version at which it was
    submitted, a finished one from that of its oldest token. A batch has a multiple of `share` groups: as many for every
    training worker.
    """

    def __init__(
        self, config: TrainConfig, controller: RolloutController, share: int, difficulty: TaskDifficulty
    ) -> None:
        self._config = config
        self._controller = controller
        self._sampler = training_sampler(config, training_tasks(config.env), difficulty)
        self._next = 0
        self._window = GroupWindow(config.rollout, config.areal.max_failures, multiple=share)
        self._specs: dict[int, GroupSpec] = {}  # of running groups
        self._submitted: dict[int, int] = {}  # the version at which each was
        self._collects = False
        self._clock = time.perf_counter()
        self._stats: dict[str, PoolStats] = {}  # by worker: its newest, and those that steps have reported
        self._reported: dict[str, PoolStats] = {}

    @property
    def position(self) -> int:
        """The first group of the sequence that no training step has seen."""
        return self._window.first(otherwise=self._next)

    def restore(self, position: int) -> None:
        """Start the training sequence at `position`, with a policy of the controller's present version; before the
        first batch."""
        self._next = position

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, list[TensorDict], Usage]:
        """The next batch, in the order of the training sequence; it may be empty. Raises `TooManyFailures` and
        `WorkerLostError`."""
        started = time.perf_counter()
        self._collects = True
        self._window.drop_old(self._version)
        self._top_up()
        heard = time.perf_counter()
        while (batch := self._window.hand_out(self._submitted, self._version)) is None:
            for answer in self._controller.wait(1, timeout=_POLL_S, raise_timeout=False):
                self._settle(answer)
                heard = time.perf_counter()
            if time.perf_counter() - heard > _SILENCE_S:
                self._check_workers()
                heard = time.perf_counter()
            on_collecting(self._window.done, self._window.rollout.groups_per_step, self._window.collected())
        collected, groups = batch
        return collected, [ready.tensors for ready in groups], self._usage(time.perf_counter() - started)

    def after_version(self) -> None:
        """A step has trained on the last batch and its version is served: places became free."""
        if self._collects:
            self._top_up()

    @property
    def _version(self) -> int:
        version: int = self._controller.get_version()
        return version

    def _top_up(self) -> None:
        for _ in range(self._window.vacant):
            self._submit(refills=0)

    def _submit(self, refills: int) -> None:
        count_accepted(self._controller.staleness_manager, self._window, self._version)
        spec = self._sampler.at(self._next)
        self._controller.submit({"index": self._next, "task": spec.task.id}, WORKFLOW)
        self._specs[self._next] = spec
        self._window.running[self._next] = refills
        self._submitted[self._next] = self._version
        self._next += 1

    def _settle(self, answer: dict[str, Any] | None) -> None:
        if answer is None:
            self._check_workers()
            raise WorkerLostError("a rollout worker did not answer")
        report = unpack_report(answer.pop("report"), self._specs.pop)
        self._stats[report.worker] = report.stats
        del self._submitted[report.finished.index]
        refills = self._window.settle(report.finished, answer or None, self._version)
        if refills is not None:
            self._submit(refills)

    def _check_workers(self) -> None:
        """Raise AReaL's `SchedulerError` when one is dead."""
        self._controller.scheduler.get_workers(role="rollout")

    def _usage(self, waited_s: float) -> Usage:
        """Environments work all the time, so their use is measured from batch to batch."""
        now = time.perf_counter()
        did = [stats - self._reported.get(worker, PoolStats()) for worker, stats in self._stats.items()]
        capacity_s = (now - self._clock) * self._config.rollout.concurrency
        self._clock, self._reported = now, dict(self._stats)
        uses = (Usage(0.0, each.busy_s, 0.0, each.wait_s, each.alive_s) for each in did)
        return sum(uses, Usage(wall_s=waited_s, capacity_s=capacity_s))
