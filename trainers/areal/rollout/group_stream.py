"""Asynchronous rollouts: AReaL's executor plays groups ahead of training, within the staleness bound."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from areal.infra import StalenessManager

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.pool import PoolStats
from trainers.areal.rollout.group_results import FinishedGroup, GroupResults
from trainers.areal.rollout.group_workflow import GroupWorkflow
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.areal.tensors import TensorDict, carries_signal
from trainers.components import Components
from trainers.config import TrainConfig
from trainers.protocol import Collected, Group, OnDone, Usage
from trainers.rollouts.task_sampler import TaskSampler

_POLL_S = 1.0


class TooManyFailures(EnvironmentFailure):
    """Group after group was lost; the message names the last cause."""


class FailureCount:
    """Groups lost in a row, of which `limit` end the run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def ended(self) -> None:
        """A group came to its end."""
        self._count = 0

    def lost(self, finished: FinishedGroup, collected: Collected) -> None:
        """All episodes of a group are lost. Raises `TooManyFailures`."""
        self._count += 1
        if finished.error is not None:
            collected.lost.append(f"{finished.group.spec.group_id}: {type(finished.error).__name__}: {finished.error}")
        if self._count >= self._limit:
            why = collected.lost[-1] if collected.lost else "unknown"
            raise TooManyFailures(f"{self._count} groups in a row were lost; the last: {why}") from finished.error


def count_accepted(manager: StalenessManager, change: int) -> None:
    """Make AReaL's count of accepted groups, by which it admits new ones, larger by `change`."""
    with manager.lock:
        manager.rollout_stat.accepted += change


@dataclass(frozen=True)
class ReadyGroup:
    """A group with signal that waits for its training step, and its tensors."""

    group: Group
    tensors: TensorDict


@dataclass
class _Window:
    """Groups between submission and training. `running` maps index to (AReaL's task id, refills it stands for)."""

    running: dict[int, tuple[int, int]] = field(default_factory=dict)
    ready: dict[int, ReadyGroup] = field(default_factory=dict)
    given_up: int = 0

    @property
    def places(self) -> int:
        return len(self.running) + len(self.ready) + self.given_up


class GroupStream:
    """The training sequence of groups, played ahead by AReaL and handed out a batch a step.

    A step has `groups_per_step` places. A group without signal gives its place to a new one, `max_refills` times over;
    then the place stays empty. AReaL's `StalenessManager` admits at most (max_staleness + version + 1) *
    groups_per_step places in all, and a batch waits for every running group that would be too stale for the next one:
    together no token is older than `max_staleness` versions when it is trained on, however slow its episode was.

    With `share` (r, n) this is process r of n, which plays every n-th group of the sequence.
    """

    def __init__(
        self,
        config: TrainConfig,
        components: Components,
        engine: PolicyRolloutEngine,
        environments: LoopEnvironments,
        *,
        pixels: bool,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._config = config
        self._engine = engine
        self._environments = environments
        self._sampler = TaskSampler(components.train_tasks, config.seed, share=share)
        self._results = GroupResults()
        self._workflow = GroupWorkflow(
            components.policy,
            self._environments,
            components.runner_for,
            self._sampler,
            config.rollout,
            self._results,
            pixels=pixels,
        )
        self._accept = partial(carries_signal, config=config.advantage)
        self._window = _Window()
        self._failures = FailureCount(config.areal.max_failures)
        self._taken = 0  # groups handed out since the version last changed
        self._clock, self._stats = time.perf_counter(), PoolStats()

    @property
    def workflow(self) -> GroupWorkflow:
        """What AReaL runs for every group."""
        return self._workflow

    @property
    def _manager(self) -> StalenessManager:
        return self._engine.workflow_executor.staleness_manager

    @property
    def position(self) -> int:
        """The first group of the sequence that no training step has seen: running and waiting ones are played again."""
        return min([*self._window.running, *self._window.ready], default=self._sampler.position)

    def collect(self, on_done: OnDone, *, at_least: int = 0) -> tuple[Collected, list[ReadyGroup], Usage]:
        """The next batch, in the order of the training sequence; waits for it.

        With `at_least` the batch has that many groups, even if more refills are needed. Raises `TooManyFailures`, and
        what broke in AReaL's threads.
        """
        started = time.perf_counter()
        self._settle_version()
        collected = Collected()
        self._top_up()
        while not self._complete(at_least):
            self._keep_going(at_least)
            for finished in self._results.take(_POLL_S):
                self._settle(finished, collected, at_least)
            self._engine.workflow_executor.dispatcher._check_thread_exception()
            on_done(*self._progress())
        batch = self._hand_out(collected, at_least)
        return collected, batch, self._usage(time.perf_counter() - started)

    def before_version(self) -> None:
        """A step has trained on the last batch and its version is about to be served: its places are used up.

        AReaL admits by counting accepted groups; empty places count like groups, or the bound would grow.
        """
        count_accepted(self._manager, self._config.rollout.groups_per_step - self._taken)
        self._taken = 0

    def after_version(self) -> None:
        """Places became free; fill them while the trainer is busy."""
        self._top_up()

    def restore(self, position: int) -> None:
        """Start the training sequence at `position`, with a policy of the engine's present version."""
        self._sampler.position = position
        self._manager.on_version_recovered(self._engine.get_version())

    async def stop(self) -> None:
        """Break off the groups that are being played; on their loop."""
        await self._workflow.stop()

    def _settle_version(self) -> None:
        if self._taken:  # the last batch changed nothing, so its version is still to be trained: its places are free
            count_accepted(self._manager, -self._taken)
            self._taken = 0

    def _top_up(self) -> None:
        rollout = self._config.rollout
        while self._window.places < (rollout.max_staleness + 1) * rollout.groups_per_step:
            self._submit(refill=0)

    def _submit(self, refill: int) -> None:
        index = self._sampler.position
        self._sampler.next(1)
        task = self._engine.submit({"index": index}, self._workflow, should_accept_fn=self._accept)
        self._window.running[index] = (task, refill)

    def _settle(self, finished: FinishedGroup, collected: Collected, at_least: int) -> None:
        """Take a finished group's result out of AReaL and put it where it belongs."""
        task, refill = self._window.running.pop(finished.index)
        result = self._engine.wait_for_task(task)
        collected.lost += finished.lost
        if not finished.group.episodes:
            self._results.forget(finished.index)
            self._failures.lost(finished, collected)
            self._submit(refill)
        elif result is not None:
            self._failures.ended()
            self._window.ready[finished.index] = ReadyGroup(finished.group, result)
        else:
            self._failures.ended()
            collected.filtered.append(finished.group)
            self._results.forget(finished.index)
            self._refill(refill, at_least)

    def _refill(self, refill: int, at_least: int) -> None:
        if refill < self._config.rollout.max_refills or len(self._window.ready) < at_least:
            self._submit(refill + 1)
        else:
            self._window.given_up += 1

    def _keep_going(self, at_least: int) -> None:
        """Use an empty place again when nothing else can bring the groups that the batch must have."""
        if len(self._window.ready) < at_least and not self._window.running:
            self._window.given_up -= 1
            self._submit(refill=0)

    def _complete(self, at_least: int) -> bool:
        wanted, ready = self._config.rollout.groups_per_step, len(self._window.ready)
        enough = ready + self._window.given_up >= wanted and ready >= min(at_least, wanted)
        return enough and not any(self._expires(index) for index in self._window.running)

    def _expires(self, index: int) -> bool:
        """Whether the group, if this batch goes without it, may hold tokens that are too stale for the next one."""
        started = self._results.started_at(index)
        return started is not None and started <= self._engine.get_version() - self._config.rollout.max_staleness

    def _hand_out(self, collected: Collected, at_least: int) -> list[ReadyGroup]:
        window, wanted = self._window, self._config.rollout.groups_per_step
        empty = min(window.given_up, wanted - min(at_least, len(window.ready)))
        urgent_first = sorted(window.ready, key=lambda index: (not self._expires(index), index))
        chosen = sorted(urgent_first[: wanted - empty])
        batch = [window.ready.pop(index) for index in chosen]
        window.given_up -= empty
        for index in chosen:
            self._results.forget(index)
        self._taken = len(batch)
        collected.kept += [ready.group for ready in batch]
        return batch

    def _progress(self) -> tuple[int, int]:
        wanted = self._config.rollout.groups_per_step
        return min(len(self._window.ready) + self._window.given_up, wanted), wanted

    def _usage(self, waited_s: float) -> Usage:
        """Environments work all the time, so their use is measured from batch to batch."""
        now, stats = time.perf_counter(), self._environments.stats()
        did, capacity_s = stats - self._stats, (now - self._clock) * self._environments.size
        self._clock, self._stats = now, stats
        return Usage(waited_s, did.busy_s, capacity_s, did.wait_s, did.alive_s)
