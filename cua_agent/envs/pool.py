"""A bounded pool of environments, lent to one episode at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from cua_agent.envs.base import Environment, EnvironmentFailure

EnvironmentFactory = Callable[[], Awaitable[Environment]]
"""Starts one environment; may raise `EnvironmentFailure`."""


class EnvironmentPool:
    """Lends at most `size` environments at a time, started when first needed and kept between episodes.

    The pool is what bounds concurrency: `lend` waits, in order of arrival, until an environment is free. One that
    raises `EnvironmentFailure` while lent is closed and a new one is started for whoever comes next. All calls must be
    made on one event loop, because a browser lives on the loop that started it.
    """

    def __init__(self, factory: EnvironmentFactory, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self._factory = factory
        self._size = size
        self._clock = clock
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Environment] = []
        self._lent_since: dict[int, float] = {}
        self._finished_s = 0.0
        self._discarded = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def discarded(self) -> int:
        """Environments that broke and were replaced."""
        return self._discarded

    @property
    def busy_s(self) -> float:
        """Environment-seconds lent so far, those of running episodes included."""
        now = self._clock()
        return self._finished_s + sum(now - since for since in self._lent_since.values())

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Environment]:
        """An environment for one episode. Raises `EnvironmentFailure` when none can be started."""
        async with self._slots:
            environment = self._idle.pop() if self._idle else await self._factory()
            self._lent_since[id(environment)] = self._clock()
            try:
                yield environment
            except EnvironmentFailure:
                self._settle(environment)
                self._discarded += 1
                await _close_quietly(environment)
                raise
            except BaseException:
                self._take_back(environment)
                raise
            else:
                self._take_back(environment)

    def _take_back(self, environment: Environment) -> None:
        self._settle(environment)
        self._idle.append(environment)

    def _settle(self, environment: Environment) -> None:
        self._finished_s += self._clock() - self._lent_since.pop(id(environment))

    async def close(self) -> None:
        """Close every idle environment; safe to call twice."""
        while self._idle:
            await _close_quietly(self._idle.pop())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _close_quietly(environment: Environment) -> None:
    # A broken world may well fail to close; it is being thrown away.
    with suppress(Exception):
        await environment.close()
