"""A world that hangs, or whose calls block, costs an episode: calls are bounded, and blocking ones have a thread."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, cast

from cua_agent.actions import Action, Point
from cua_agent.envs.base import (
    Environment,
    EnvironmentFailure,
    HearsReports,
    Observation,
    StepResult,
    TellsSideEffects,
)
from cua_agent.envs.pool import GoverningFactory, PoolPolicy, SelfChecking
from cua_agent.tasks import CUATask

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0
"""How long a call may take unless somebody says otherwise."""
_CANCELLING_S = 2.0
"""How long a call that was given up may take to clean up behind it."""


class BlockingEnvironment(Protocol):
    """An `Environment` whose methods are plain functions, which may block: see there."""

    def reset(self, task: CUATask, seed: int) -> Observation: ...
    def step(self, action: Action) -> StepResult: ...
    def locate(self, target: str) -> Point | None: ...
    def compute_reward(self) -> float: ...
    def close(self) -> None: ...


AnyFactory = Callable[[], Awaitable[Environment] | BlockingEnvironment]
"""Starts one environment, as a coroutine or as a plain function."""


class GuardedEnvironment:
    """Implements `Environment` over any other: a call that takes longer than `timeout_s` raises `EnvironmentFailure`.

    A world whose methods are plain functions is called in a thread of its own, always the same one, so that it cannot
    hold up others. One that hangs there is closed from another thread and abandoned with its own, which ends with the
    process.
    """

    def __init__(
        self, world: Environment | BlockingEnvironment, timeout_s: float = TIMEOUT_S, thread: _Thread | None = None
    ) -> None:
        self._world = cast(Any, world)
        self._timeout_s = timeout_s
        self._thread = None if inspect.iscoroutinefunction(world.step) else thread or _Thread()

    async def reset(self, task: CUATask, seed: int) -> Observation:
        observation: Observation = await self._bounded("reset", self._world.reset, task, seed)
        return observation

    async def step(self, action: Action) -> StepResult:
        result: StepResult = await self._bounded(type(action).__name__, self._world.step, action)
        return result

    async def locate(self, target: str) -> Point | None:
        point: Point | None = await self._bounded("locate", self._world.locate, target)
        return point

    async def compute_reward(self) -> float:
        reward: float = await self._bounded("compute_reward", self._world.compute_reward)
        return reward

    async def side_effects(self) -> int:
        """What the world says that an episode changed besides its goal; 0 where it cannot say."""
        if not isinstance(self._world, TellsSideEffects):
            return 0
        count: int = await self._bounded("side_effects", self._world.side_effects)
        return count

    async def report(self, message: str) -> None:
        """Pass on what the agent reports, where the world wants to hear it."""
        if isinstance(self._world, HearsReports):
            await self._bounded("report", self._world.report, message)

    async def snapshot(self) -> object:
        """The world as it is; only of one that can be copied."""
        return await self._bounded("snapshot", self._world.snapshot)

    async def restore(self, task: CUATask, snapshot: object) -> Observation:
        """Go on with `task` from `snapshot`."""
        observation: Observation = await self._bounded("restore", self._world.restore, task, snapshot)
        return observation

    async def is_fit(self) -> bool:
        """Whether the world says that it can play another episode, where it can say."""
        if not isinstance(self._world, SelfChecking):
            return True
        try:
            return bool(await self._bounded("is_fit", self._world.is_fit))
        except EnvironmentFailure:
            return False

    async def close(self) -> None:
        if self._thread is not None and self._thread.is_busy:
            self._thread.stop()
            self._thread = _Thread()
        try:
            await self._bounded("close", self._world.close)
        finally:
            if self._thread is not None:
                self._thread.stop()

    async def _bounded(self, what: str, method: Callable[..., Any], *arguments: Any) -> Any:
        return await bounded(what, _called(self._thread, partial(method, *arguments)), self._timeout_s)


class GuardedFactory:
    """Starts guarded environments. A start is bounded by `start_timeout_s`; None: the factory does so by itself."""

    def __init__(
        self, factory: AnyFactory, timeout_s: float = TIMEOUT_S, start_timeout_s: float | None = TIMEOUT_S
    ) -> None:
        self._factory = factory
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s

    @property
    def policy(self) -> PoolPolicy:
        """The factory's own, if it has one."""
        return self._factory.policy if isinstance(self._factory, GoverningFactory) else PoolPolicy()

    async def __call__(self) -> GuardedEnvironment:
        """Raises `EnvironmentFailure`, and what the factory raises."""
        thread = None if _is_async(self._factory) else _Thread()
        world = await bounded("start", _called(thread, self._factory), self._start_timeout_s)
        return GuardedEnvironment(world, self._timeout_s, thread)


async def bounded(what: str, call: Awaitable[Any], timeout_s: float | None) -> Any:
    """The result of `call`. Raises `EnvironmentFailure` when it takes longer than `timeout_s`; then it is cancelled,
    and abandoned when it does not heed that."""
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if done:
            return task.result()
        raise EnvironmentFailure(f"{what}: no end within {timeout_s:g} s (env.timeout_s)")
    finally:
        if not task.done():
            task.add_done_callback(_hear)
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCELLING_S)


def _hear(task: asyncio.Future[Any]) -> None:
    """Nobody waits for this call any more; without this, asyncio would complain about its error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("an abandoned call ended: %s", error)


async def _called(thread: _Thread | None, call: Callable[[], Any]) -> Any:
    result = call() if thread is None else await asyncio.wrap_future(thread.submit(call))
    return await result if inspect.isawaitable(result) else result


def _is_async(factory: AnyFactory) -> bool:
    return inspect.iscoroutinefunction(factory) or inspect.iscoroutinefunction(type(factory).__call__)


class _Thread:
    """Makes one call after the other. A daemon: nothing waits for a call that hangs, not even the process's end."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self.is_busy = False
        threading.Thread(target=self._serve, name="blocking environment", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End after the calls that were submitted."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            self.is_busy = True
            try:
                result = call()
            except BaseException as error:
                self.is_busy = False
                future.set_exception(error)
            else:
                self.is_busy = False
                future.set_result(result)
