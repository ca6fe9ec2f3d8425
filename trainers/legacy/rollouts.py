"""Synchronous rollouts: one event loop, one pool of environments, blocking calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool, PoolStats
from cua_agent.inference.base import InferenceEngine
from trainers.components import Components
from trainers.config import TrainConfig
from trainers.grpo.advantages import has_signal
from trainers.protocol import Collected, EpisodeSpec, Group, GroupSpec, OnCollecting, OnDone, Played, Usage
from trainers.rollouts.collection import collect, play_all, play_groups, watched
from trainers.rollouts.event_loops import LoopThread
from trainers.rollouts.group_spool import NO_SPOOL, GroupSpool
from trainers.rollouts.task_sampler import training_sampler


class SynchronousRollouts:
    """Plays the groups of one step to their end, then those of the next; implements `Rollouts`.

    Owns one event loop for its whole life, because a browser lives on the loop that started it. It has a thread of its
    own, so that an environment that blocks it does not block the trainer. Groups in `spool` are
    not played again.
    """

    def __init__(
        self, config: TrainConfig, components: Components, engine: InferenceEngine, spool: GroupSpool = NO_SPOOL
    ) -> None:
        self._config = config
        self._components = components
        self._engine = engine
        self._spool = spool
        self._run_episode = components.runner_for(engine)
        self._sampler = training_sampler(config, components.train_tasks, components.difficulty)
        self._successes = components.successes
        self._stack = AsyncExitStack()
        self._loop = LoopThread()
        self._stats = PoolStats()
        self._closed = False
        try:
            self._pool = self._loop.run(self._open())
        except BaseException:
            self._loop.close()
            raise

    async def _open(self) -> EnvironmentPool:
        self._stack.push_async_callback(self._engine.close)
        factory = await self._stack.enter_async_context(self._components.environments())
        return await self._stack.enter_async_context(EnvironmentPool(factory, self._config.rollout.concurrency))

    @property
    def position(self) -> int:
        return self._sampler.position

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, Usage]:
        """The groups of one step, filtered and refilled. When it raises, `position` is what it was.

        Raises `EnvironmentFailure` when every episode was lost.
        """
        rollout, position = self._config.rollout, self._sampler.position
        collected, done = Collected(), (0, rollout.groups_per_step * rollout.group_size)

        def on_done(finished: int, of: int) -> None:
            nonlocal done
            done = finished, of

        async def play_round(specs: Sequence[GroupSpec]) -> tuple[list[Group], list[str]]:
            kept = (self._spool.take(spec, self._sampler.tasks) for spec in specs)
            found = {group.spec.group_id: group for group in kept if group is not None}
            played, lost = await play_groups(
                self._pool,
                self._run_episode,
                [spec for spec in specs if spec.group_id not in found],
                rollout.group_size,
                rollout.infra_retries,
                on_done,
                self._spool.put,
                self._config.advantage.forked,
            )
            found |= {group.spec.group_id: group for group in played}
            version = self._engine.version
            return [self._successes.completed(found[spec.group_id], version) for spec in specs], lost

        def worth_training_on(group: Group) -> bool:
            return has_signal(group.rows, self._config.advantage)

        started, before = time.perf_counter(), self._pool.stats()
        rounds = collect(
            play_round, self._sampler.next, worth_training_on, rollout.groups_per_step, rollout.max_refills, collected
        )
        try:
            self._loop.run(watched(rounds, lambda: on_collecting(*done, collected)))
            if not collected.episodes:
                lost = collected.lost
                raise EnvironmentFailure(f"all {len(lost)} episodes of a step were lost; the last: {lost[-1]}")
        except BaseException:
            self._sampler.position = position  # nothing was learnt from these groups: a resumed run plays them again
            raise
        self._successes.keep(collected.groups)
        wall_s = time.perf_counter() - started
        return collected, self._usage(wall_s, self._pool.stats(), before)

    def _usage(self, wall_s: float, now: PoolStats, before: PoolStats) -> Usage:
        """Environments work while training waits, and cost all the time."""
        since = now - self._stats
        self._stats = now
        return Usage(wall_s, (now - before).busy_s, wall_s * self._pool.size, since.wait_s, since.alive_s)

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        retries = self._config.rollout.infra_retries
        return self._loop.run(play_all(self._pool, self._run_episode, specs, retries, on_done))

    def publish(self, version: int) -> None:
        self._engine.update_weights(version)

    def restore(self, version: int, position: int) -> None:
        self._sampler.position = position
        self.publish(version)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._loop.answers():  # else nothing that lives on it can be ended
            self._loop.run(self._stack.aclose())
        self._loop.close()
        self._components.close()
