"""Environments on AReaL's event loop, which runs in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from cua_agent.envs.pool import EnvironmentFactory, EnvironmentPool, PoolStats
from trainers.rollouts.event_loops import LoopWatch, answers

_CLOSING_S = 300.0  # boxes in the cloud that are still being created are waited for


class LoopEnvironments:
    """A pool of at most `size` environments that opens on the loop that first asks for it.

    A browser lives on the loop that started it, and AReaL makes that loop. What blocks it is named.
    """

    def __init__(self, environments: Callable[[], AbstractAsyncContextManager[EnvironmentFactory]], size: int) -> None:
        self._environments = environments
        self._size = size
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: EnvironmentPool | None = None

    @property
    def size(self) -> int:
        """Environments that may be lent at the same time."""
        return self._size

    def stats(self) -> PoolStats:
        """What the pool did so far."""
        return self._pool.stats() if self._pool is not None else PoolStats()

    async def pool(self) -> EnvironmentPool:
        """The pool; opened by the first call, on its loop."""
        async with self._opening:
            if self._pool is None:
                self._loop = asyncio.get_running_loop()
                LoopWatch(self._loop)
                factory = await self._stack.enter_async_context(self._environments())
                self._pool = await self._stack.enter_async_context(EnvironmentPool(factory, self._size))
            return self._pool

    def answer(self) -> bool:
        """Whether their loop can still do anything; asked from another thread."""
        return self._loop is None or not self._loop.is_running() or answers(self._loop)

    def close(self) -> None:
        """Close every environment, from any other thread, while the loop still runs; safe to call twice."""
        loop, self._loop = self._loop, None
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(self._stack.aclose(), loop).result(_CLOSING_S)
