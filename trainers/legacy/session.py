"""Rollouts as a synchronous trainer wants them: one event loop, one pool of environments, blocking calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from cua_agent.envs.pool import EnvironmentFactory, EnvironmentPool
from cua_agent.inference.base import InferenceEngine
from trainers.config import RolloutConfig
from trainers.rollouts import (
    Collected,
    EpisodeRunner,
    EpisodeSpec,
    Group,
    GroupSpec,
    OnDone,
    Played,
    collect,
    play_all,
    play_groups,
)


@dataclass(frozen=True)
class Usage:
    """What rollouts cost: wall seconds, and environment-seconds lent to episodes."""

    wall_s: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.wall_s + other.wall_s, self.busy_s + other.busy_s)


class RolloutSession:
    """Owns one event loop for its whole life, because a browser lives on the loop that started it."""

    def __init__(
        self,
        config: RolloutConfig,
        engine: InferenceEngine,
        environments: AbstractAsyncContextManager[EnvironmentFactory],
        run_episode: EpisodeRunner,
    ) -> None:
        self._config = config
        self._engine = engine
        self._run_episode = run_episode
        self._stack = AsyncExitStack()
        self._runner = asyncio.Runner()
        self._closed = False
        try:
            self._pool = self._runner.run(self._open(environments))
        except BaseException:
            self._runner.close()
            raise

    async def _open(self, environments: AbstractAsyncContextManager[EnvironmentFactory]) -> EnvironmentPool:
        self._stack.push_async_callback(self._engine.close)
        factory = await self._stack.enter_async_context(environments)
        return await self._stack.enter_async_context(EnvironmentPool(factory, self._config.concurrency))

    def collect(
        self, draw: Callable[[int], Sequence[GroupSpec]], has_signal: Callable[[Group], bool], on_done: OnDone
    ) -> tuple[Collected, Usage]:
        """The rollouts of one step, filtered and refilled."""

        async def play_round(specs: Sequence[GroupSpec]) -> tuple[list[Group], list[str]]:
            config = self._config
            return await play_groups(
                self._pool, self._run_episode, specs, config.group_size, config.infra_retries, on_done
            )

        started, busy = time.perf_counter(), self._pool.busy_s
        wanted, refills = self._config.groups_per_step, self._config.max_refills
        collected = self._runner.run(collect(play_round, draw, has_signal, wanted, refills))
        return collected, Usage(time.perf_counter() - started, self._pool.busy_s - busy)

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        """Play single episodes, for an evaluation."""
        retries = self._config.infra_retries
        return self._runner.run(play_all(self._pool, self._run_episode, specs, retries, on_done))

    def close(self) -> None:
        """Close environments and engine; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with self._runner:
            self._runner.run(self._stack.aclose())
