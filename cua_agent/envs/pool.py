"""A bounded pool of environments, lent to one episode at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from cua_agent.envs.base import Environment, EnvironmentFailure

logger = logging.getLogger(__name__)

EnvironmentFactory = Callable[[], Awaitable[Environment]]
"""Starts one environment; may raise `EnvironmentFailure`. When it is cancelled, nothing may stay behind."""


@dataclass(frozen=True)
class PoolPolicy:
    """How environments are kept: `prewarm` ready ones beyond those that are lent (within the pool's size), each for at
    most `max_episodes` (None: any number), and lent no more once it is older than `max_age_s`."""

    prewarm: int = 0
    max_episodes: int | None = None
    max_age_s: float = math.inf


@runtime_checkable
class GoverningFactory(Protocol):
    """A factory that knows how what it starts is to be kept."""

    @property
    def policy(self) -> PoolPolicy:
        """How the pool treats the factory's environments."""
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """An environment that can tell whether it is fit for another episode; asked whenever it is to be lent."""

    async def is_fit(self) -> bool:
        """Whether the environment can play another episode."""
        ...


@dataclass(frozen=True)
class PoolStats:
    """What a pool did since it was made; `later - earlier` is what it did in between.

    Environments `started`, `broken` (raised `EnvironmentFailure` while lent), `recycled` (replaced by policy, or found
    unfit between episodes) and `unstarted` (attempts that failed). Environment-seconds lent to an episode (`busy_s`)
    and in existence, from the start of the creation to the end of the closing (`alive_s`); seconds that episodes waited
    for an environment (`wait_s`, summed over `lent` of them).
    """

    started: int = 0
    broken: int = 0
    recycled: int = 0
    unstarted: int = 0
    lent: int = 0
    busy_s: float = 0.0
    alive_s: float = 0.0
    wait_s: float = 0.0

    def __sub__(self, earlier: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


@dataclass(eq=False)
class _Kept:
    """An environment that the pool answers for. `born` is when its creation began."""

    environment: Environment
    born: float
    episodes: int = 0
    lent_since: float | None = None
    closing: bool = False


class EnvironmentPool:
    """Lends at most `size` environments at a time, started when first needed and kept between episodes.

    The pool is what bounds concurrency, and the number of environments in existence: `lend` waits, in order of arrival,
    until one comes back or is started. One that raises `EnvironmentFailure` while lent is closed and a new one is
    started when somebody waits. How long others are kept is up to `policy`, by default the factory's own. All calls
    must be made on one event loop, because a browser lives on the loop that started it.
    """

    def __init__(
        self,
        factory: EnvironmentFactory,
        size: int,
        policy: PoolPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self._factory = factory
        self._size = size
        self._policy = policy or (factory.policy if isinstance(factory, GoverningFactory) else PoolPolicy())
        self._clock = clock
        self._slots = asyncio.Semaphore(size)
        self._ready: asyncio.Queue[_Kept | Exception] = asyncio.Queue()
        self._waiting = 0
        self._starting: dict[asyncio.Task[None], float] = {}  # and when each began
        self._kept: set[_Kept] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False
        self._past = PoolStats()

    @property
    def size(self) -> int:
        """Environments that may be lent at the same time."""
        return self._size

    def stats(self) -> PoolStats:
        """Up to now, what is still running included."""
        now, past = self._clock(), self._past
        lent = sum(now - kept.lent_since for kept in self._kept if kept.lent_since is not None)
        alive = sum(now - kept.born for kept in self._kept) + sum(now - born for born in self._starting.values())
        return _plus(past, busy_s=lent, alive_s=alive)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Environment]:
        """An environment for one episode. Raises `EnvironmentFailure` when none can be started."""
        asked = self._clock()
        async with self._slots:
            kept = await self._obtain()
            kept.lent_since = self._clock()
            self._count(lent=1, wait_s=kept.lent_since - asked)
            try:
                yield kept.environment
            except EnvironmentFailure:
                self._count(broken=1)
                self._settle(kept)
                self._retire(kept)
                raise
            except BaseException:
                self._take_back(kept)
                raise
            else:
                self._take_back(kept)

    async def close(self) -> None:
        """Close every environment, also one that is still lent, and give up on those that are starting; safe to call
        twice."""
        self._closed = True
        for _ in range(self._waiting):
            self._ready.put_nowait(RuntimeError("the pool is closed"))
        starting = list(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        self._starting.clear()  # one that was cancelled before its first step could not do it itself
        for kept in list(self._kept):
            self._retire(kept)
        await asyncio.gather(*self._closings)

    async def __aenter__(self) -> Self:
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _obtain(self) -> _Kept:
        """A fit environment: the first that comes back or is started."""
        while True:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._waiting += 1
            self._fill()
            try:
                ready = await self._ready.get()
            finally:
                self._waiting -= 1
            if isinstance(ready, Exception):
                raise ready
            if await self._is_fit(ready):
                return ready
            self._count(recycled=1)

    async def _is_fit(self, kept: _Kept) -> bool:
        """Whether `kept` may be lent; it is retired when not, or when nobody is left to ask."""
        fit = False
        try:
            fit = not self._is_spent(kept) and (
                not isinstance(kept.environment, SelfChecking) or await kept.environment.is_fit()
            )
        finally:
            if not fit:
                self._retire(kept)
        return fit

    def _is_spent(self, kept: _Kept) -> bool:
        limit = self._policy.max_episodes
        too_old = self._clock() - kept.born >= self._policy.max_age_s
        return too_old or (limit is not None and kept.episodes >= limit)

    def _fill(self) -> None:
        """Start what waiting episodes and the stock lack, as far as there is room."""
        missing = self._waiting + self._policy.prewarm - self._ready.qsize() - len(self._starting)
        room = 0 if self._closed else self._size - len(self._kept) - len(self._starting)
        for _ in range(min(missing, room)):
            self._starting[asyncio.create_task(self._start())] = self._clock()

    async def _start(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            environment = await self._factory()
        except BaseException as error:
            self._count(unstarted=1, alive_s=self._clock() - self._starting.pop(task))
            if not isinstance(error, Exception):
                raise
            self._report(error)
        else:
            kept = _Kept(environment, born=self._starting.pop(task))
            self._kept.add(kept)
            self._count(started=1)
            self._ready.put_nowait(kept)

    def _report(self, error: Exception) -> None:
        """Let the episode that needs the environment fail; one that was for the stock is not worth more than a line."""
        if self._waiting > self._ready.qsize() or not isinstance(error, EnvironmentFailure):
            self._ready.put_nowait(error)
        else:
            logger.warning("an environment did not start: %s", error)

    def _settle(self, kept: _Kept) -> None:
        if kept.lent_since is not None:
            self._count(busy_s=self._clock() - kept.lent_since)
            kept.lent_since = None
            kept.episodes += 1

    def _take_back(self, kept: _Kept) -> None:
        self._settle(kept)
        if kept.closing:
            return
        if self._is_spent(kept):
            self._count(recycled=1)
            self._retire(kept)
        else:
            self._ready.put_nowait(kept)

    def _retire(self, kept: _Kept) -> None:
        """Close in the background; until that is done the environment counts against the pool's size."""
        if not kept.closing:
            kept.closing = True
            task = asyncio.create_task(self._close_one(kept))
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)

    async def _close_one(self, kept: _Kept) -> None:
        with suppress(Exception):  # a broken world may well fail to close; it is being thrown away
            await kept.environment.close()
        self._settle(kept)
        self._kept.remove(kept)
        self._count(alive_s=self._clock() - kept.born)
        self._fill()

    def _count(self, **more: float) -> None:
        self._past = _plus(self._past, **more)


def _plus(stats: PoolStats, **more: float) -> PoolStats:
    return PoolStats(**{f.name: getattr(stats, f.name) + more.get(f.name, 0) for f in fields(stats)})
