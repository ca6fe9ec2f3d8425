"""Asynchronous rollouts: AReaL's executor plays groups ahead of training, within the staleness bound."""

from __future__ import annotations

import time
from functools import partial

from areal.infra import StalenessManager

from cua_agent.envs.pool import PoolStats
from trainers.areal.rollout.group_results import FinishedGroup, GroupResults
from trainers.areal.rollout.group_window import GroupWindow, ReadyGroup
from trainers.areal.rollout.group_workflow import GroupWorkflow
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.areal.tensors import carries_signal, rows_to_tensors
from trainers.components import Components
from trainers.config import TrainConfig
from trainers.protocol import Collected, GroupSpec, OnCollecting, Usage
from trainers.rollouts.group_spool import NO_SPOOL, GroupSpool
from trainers.rollouts.task_sampler import training_sampler

_POLL_S = 1.0


def count_accepted(manager: StalenessManager, window: GroupWindow, version: int) -> None:
    """Set AReaL's count of accepted groups, by which it admits new ones: `groups_per_step` for each version that was
    trained, and what waits in the window. Places that stay empty count like groups, and a batch that changed nothing
    does not count; so AReaL admits what the window has room for, and no more."""
    trained = version * window.rollout.groups_per_step
    with manager.lock:
        manager.rollout_stat.accepted = trained + len(window.ready) + window.empty


class GroupStream:
    """The training sequence of groups, played ahead by AReaL and handed out a batch a step.

    Which groups a batch has, and what it waits for, is the rule of `staleness`: no token is older than `max_staleness`
    versions when it is trained on, however slow its episode was.

    With `share` (r, n) this is process r of n, which plays every n-th group of the sequence. All keep the rule for
    their share of a step's places, and their versions advance together.
    """

    def __init__(
        self,
        config: TrainConfig,
        components: Components,
        engine: PolicyRolloutEngine,
        environments: LoopEnvironments,
        *,
        pixels: bool,
        spool: GroupSpool = NO_SPOOL,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._policy = components.policy
        self._pixels = pixels
        self._spool = spool
        self._config = config
        self._engine = engine
        self._environments = environments
        self._sampler = training_sampler(config, components.train_tasks, components.difficulty, share)
        self._results = GroupResults()
        self._successes = components.successes
        self._workflow = GroupWorkflow(
            components.policy,
            self._environments,
            components.runner_for,
            self._sampler,
            config.rollout,
            self._results,
            self._successes,
            branches=config.advantage.forked,
            pixels=pixels,
            spool=spool,
        )
        self._accept = partial(carries_signal, config=config.advantage)
        self._window = GroupWindow(config.rollout, config.areal.max_failures)
        self._tasks: dict[int, int] = {}  # AReaL's task of a running group, by its index
        self._collects = False
        self._clock, self._stats = time.perf_counter(), PoolStats()

    @property
    def workflow(self) -> GroupWorkflow:
        """What AReaL runs for every group."""
        return self._workflow

    @property
    def position(self) -> int:
        """The first group of the sequence that no training step has seen: running and waiting ones are played again."""
        return self._window.first(otherwise=self._sampler.position)

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, list[ReadyGroup], Usage]:
        """The next batch, in the order of the training sequence; waits for it. It has fewer groups than places, or none
        at all, where the refills brought no signal. Raises `TooManyFailures`, and what broke in AReaL's threads."""
        started = time.perf_counter()
        self._collects = True
        self._window.drop_old(self._version)
        self._top_up()
        while (batch := self._window.hand_out(self._results.starts(), self._version)) is None:
            for finished in self._results.take(_POLL_S):
                self._settle(finished)
            self._engine.workflow_executor.dispatcher._check_thread_exception()
            on_collecting(self._window.done, self._window.rollout.groups_per_step, self._window.collected())
        collected, groups = batch
        self._successes.keep(collected.groups)
        return collected, groups, self._usage(time.perf_counter() - started)

    def after_version(self) -> None:
        """A step has trained on the last batch and its version is served: places became free. Fill them while the
        trainer is busy."""
        if self._collects:
            self._top_up()

    def restore(self, position: int) -> None:
        """Start the training sequence at `position`, with a policy of the engine's present version. Raises
        `RuntimeError` once groups of another policy are being played."""
        if self._collects:
            raise RuntimeError("a checkpoint is loaded before the first step: groups of the policy so far are playing")
        self._sampler.position = position

    async def stop(self) -> None:
        """Break off the groups that are being played; on their loop."""
        await self._workflow.stop()

    @property
    def _version(self) -> int:
        version: int = self._engine.get_version()
        return version

    def _top_up(self) -> None:
        for _ in range(self._window.vacant):
            self._submit(refills=0)

    def _submit(self, refills: int | None) -> None:
        """Play the next group of the sequence, or what is played in its place; one that was played before the run was
        killed is ready at once."""
        while refills is not None:
            index = self._sampler.position
            [spec] = self._sampler.next(1)
            group = self._spool.take(spec, self._sampler.tasks)
            if group is None:
                self._play(index, spec, refills)
                return
            self._window.running[index] = refills
            group = self._successes.completed(group, self._version)
            tensors = rows_to_tensors(self._policy, group.rows, pixels=self._pixels)
            accepted = tensors if self._accept(tensors) else None
            refills = self._window.settle(FinishedGroup(index, group), accepted, self._version)

    def _play(self, index: int, spec: GroupSpec, refills: int) -> None:
        count_accepted(self._engine.workflow_executor.staleness_manager, self._window, self._version)
        data = {"index": index, "task": spec.task.id}
        self._tasks[index] = self._engine.submit(data, self._workflow, should_accept_fn=self._accept)
        self._window.running[index] = refills

    def _settle(self, finished: FinishedGroup) -> None:
        """Take a finished group's result out of AReaL and put it where it belongs."""
        tensors = self._engine.wait_for_task(self._tasks.pop(finished.index))
        self._submit(self._window.settle(finished, tensors, self._version))

    def _usage(self, waited_s: float) -> Usage:
        """Environments work all the time, so their use is measured from batch to batch."""
        now, stats = time.perf_counter(), self._environments.stats()
        did, capacity_s = stats - self._stats, (now - self._clock) * self._environments.size
        self._clock, self._stats = now, stats
        return Usage(waited_s, did.busy_s, capacity_s, did.wait_s, did.alive_s)
