"""An environment that hangs costs its episode, whatever way it hangs in."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cua_agent.actions import Action, Wait
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.guard import GuardedEnvironment, GuardedFactory
from cua_agent.envs.pool import EnvironmentPool, PoolPolicy
from cua_agent.tasks import CUATask
from cua_agent.trajectory import Trajectory
from tests.toy_world import SquareEnvironment, toy_task, trajectory
from trainers.protocol import EpisodeSpec
from trainers.rollouts.collection import play_episode

LIMIT_S = 0.2
FOR_EVER = threading.Event()  # is never set


class Asleep(SquareEnvironment):
    async def step(self, action: Action) -> StepResult:
        await asyncio.sleep(3600)
        raise AssertionError


class Stubborn(SquareEnvironment):
    """Takes being cancelled for a reason to try again."""

    async def step(self, action: Action) -> StepResult:
        while not self.closed:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        raise AssertionError


class Blocking:
    """A world of plain functions. `step` hangs when `hangs` says so, until the world is closed."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.closed = threading.Event()
        self.threads = {threading.get_ident()}

    def reset(self, task: CUATask, seed: int) -> Observation:
        self.threads.add(threading.get_ident())
        return asyncio.run(SquareEnvironment().reset(task, seed))

    def step(self, action: Action) -> StepResult:
        self.threads.add(threading.get_ident())
        if self.hangs:
            self.closed.wait()
            raise RuntimeError("closed under a call")
        time.sleep(0.05)
        return StepResult(self.reset(toy_task(), 0), done=True)

    def locate(self, target: str) -> None:
        return None

    def compute_reward(self) -> float:
        raise EnvironmentFailure("no score")

    def close(self) -> None:
        self.closed.set()


async def run(environment: Any, spec: EpisodeSpec) -> list[Trajectory]:
    await environment.reset(spec.task, spec.seed)
    await environment.step(Wait(0.0))
    return [trajectory(1.0)]


@pytest.mark.parametrize("hanging", [Asleep, Stubborn, lambda: Blocking(hangs=True)])
def test_an_environment_that_hangs_is_closed_and_replaced_and_its_episode_played_again(hanging: Any) -> None:
    made: list[Any] = []

    async def factory() -> Any:
        made.append(hanging() if not made else SquareEnvironment())
        return made[-1]

    async def scenario() -> None:
        async with EnvironmentPool(GuardedFactory(factory, LIMIT_S, LIMIT_S), size=1) as pool:
            played = await play_episode(pool, run, EpisodeSpec(toy_task(), 0, "g", "e"), retries=1)
            assert played.rows is not None
            assert played.lost == ("e (tap): Wait: no end within 0.2 s (env.timeout_s)",)
            assert (pool.stats().started, pool.stats().broken) == (2, 1)

    asyncio.run(scenario())
    closed = made[0].closed
    assert closed.is_set() if isinstance(closed, threading.Event) else closed


def test_a_world_of_plain_functions_lives_in_one_thread_and_holds_up_nobody() -> None:
    ticks = 0

    async def scenario() -> Blocking:
        nonlocal ticks

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        worlds: list[Blocking] = []

        def factory() -> Blocking:
            worlds.append(Blocking())
            return worlds[-1]

        environment = await GuardedFactory(factory)()
        await environment.reset(toy_task(), 0)
        assert (await environment.step(Wait(0.0))).done
        with pytest.raises(EnvironmentFailure, match="no score"):
            await environment.compute_reward()
        await environment.close()
        ticking.cancel()
        return worlds[0]

    world = asyncio.run(scenario())
    assert len(world.threads) == 1
    assert threading.get_ident() not in world.threads
    assert world.closed.is_set()
    assert ticks > 1


async def start_late() -> SquareEnvironment:
    await asyncio.sleep(3600)
    return SquareEnvironment()


def start_never() -> Blocking:
    FOR_EVER.wait()
    return Blocking()


@pytest.mark.parametrize("factory", [start_late, start_never])
def test_a_start_that_hangs_costs_the_episode(factory: Callable[[], Any]) -> None:
    async def scenario() -> None:
        async with EnvironmentPool(GuardedFactory(factory, LIMIT_S, LIMIT_S), size=1) as pool:
            played = await play_episode(pool, run, EpisodeSpec(toy_task(), 0, "g", "e"), retries=0)
            assert (played.rows, played.lost) == (None, ("e (tap): start: no end within 0.2 s (env.timeout_s)",))

    asyncio.run(scenario())


def test_what_the_world_says_of_itself_goes_through() -> None:
    class Choosy(Asleep):
        fit = False

        async def is_fit(self) -> bool:
            return self.fit

    class Governing:
        policy = PoolPolicy(prewarm=3)

        async def __call__(self) -> SquareEnvironment:
            return SquareEnvironment()

    assert GuardedFactory(Governing()).policy == PoolPolicy(prewarm=3)
    assert GuardedFactory(start_late).policy == PoolPolicy()
    assert [asyncio.run(GuardedEnvironment(world).is_fit()) for world in (Asleep(), Choosy())] == [True, False]


def test_a_cancelled_episode_cancels_the_call() -> None:
    cancelled = []

    class Noting(SquareEnvironment):
        async def step(self, action: Action) -> StepResult:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            raise AssertionError

    async def scenario() -> None:
        task = asyncio.create_task(GuardedEnvironment(Noting()).step(Wait(0.0)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert cancelled == [True]
