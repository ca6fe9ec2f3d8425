"""How long the pool keeps environments, what it starts ahead, and what it counts."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool, PoolPolicy, PoolStats
from tests.toy_world import SquareEnvironment


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Checked(SquareEnvironment):
    """Says that it is unfit from its `spent`-th check on; takes a moment to close."""

    def __init__(self, spent: float = math.inf) -> None:
        super().__init__()
        self.checks = 0
        self.spent = spent

    async def is_fit(self) -> bool:
        self.checks += 1
        return self.checks < self.spent

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True


class Factory:
    """Makes environments; `behaviour` is called before each with its number, and may wait or raise."""

    def __init__(self, behaviour: Callable[[int], Awaitable[None]] | None = None, **options: Any) -> None:
        self.made: list[Checked] = []
        self.attempts = 0
        self.most_alive = 0
        self._behaviour = behaviour
        self._options = options

    async def __call__(self) -> Environment:
        self.attempts += 1
        if self._behaviour:
            await self._behaviour(self.attempts)
        self.made.append(Checked(**self._options))
        self.most_alive = max(self.most_alive, sum(not environment.closed for environment in self.made))
        return self.made[-1]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def lend_times(pool: EnvironmentPool, times: int) -> list[Environment]:
    lent = []
    for _ in range(times):
        async with pool.lend() as environment:
            lent.append(environment)
    return lent


def test_an_environment_is_replaced_after_its_episodes() -> None:
    async def main() -> tuple[list[int], PoolStats]:
        factory = Factory()
        async with EnvironmentPool(factory, 1, PoolPolicy(max_episodes=2)) as pool:
            lent = await lend_times(pool, 5)
            return [factory.made.index(environment) for environment in lent], pool.stats()  # type: ignore[arg-type]

    order, stats = asyncio.run(main())
    assert order == [0, 0, 1, 1, 2]
    assert (stats.started, stats.recycled, stats.broken, stats.lent) == (3, 2, 0, 5)


def test_an_environment_that_is_too_old_is_replaced_between_episodes() -> None:
    clock = Clock()

    async def main() -> list[int]:
        factory = Factory()
        async with EnvironmentPool(factory, 1, PoolPolicy(max_age_s=10), clock) as pool:
            lent = []
            for minutes in (4, 5, 30, 0):  # at 0, 4, 9 and 39
                lent += await lend_times(pool, 1)
                clock.now += minutes
            return [factory.made.index(environment) for environment in lent]  # type: ignore[arg-type]

    assert asyncio.run(main()) == [0, 0, 0, 1]


def test_an_environment_may_grow_old_during_an_episode() -> None:
    clock = Clock()

    async def main() -> list[bool]:
        factory = Factory()
        async with EnvironmentPool(factory, 1, PoolPolicy(max_age_s=10), clock) as pool:
            async with pool.lend():
                clock.now = 100.0
                closed = [factory.made[0].closed]
            await settle()
            return [*closed, factory.made[0].closed]

    assert asyncio.run(main()) == [False, True]


def test_one_that_says_it_is_unfit_is_replaced_and_no_episode_is_lost() -> None:
    async def main() -> tuple[list[int], PoolStats]:
        factory = Factory(spent=3)
        async with EnvironmentPool(factory, 1) as pool:
            lent = await lend_times(pool, 4)
            return [factory.made.index(environment) for environment in lent], pool.stats()  # type: ignore[arg-type]

    order, stats = asyncio.run(main())
    assert order == [0, 0, 1, 1]
    assert (stats.recycled, stats.broken) == (1, 0)


def test_a_factory_says_how_its_environments_are_kept() -> None:
    class Governing(Factory):
        policy = PoolPolicy(max_episodes=1)

    async def main() -> int:
        factory = Governing()
        async with EnvironmentPool(factory, 1) as pool:
            await lend_times(pool, 3)
        return len(factory.made)

    assert asyncio.run(main()) == 3


@pytest.mark.parametrize(("prewarm", "size", "at_first", "with_two_lent"), [(2, 5, 2, 4), (3, 4, 3, 4), (9, 2, 2, 2)])
def test_a_stock_is_kept_ready(prewarm: int, size: int, at_first: int, with_two_lent: int) -> None:
    async def main() -> tuple[int, int]:
        factory = Factory()
        async with EnvironmentPool(factory, size, PoolPolicy(prewarm)) as pool:
            await settle()
            ready = len(factory.made)
            async with pool.lend(), pool.lend():
                await settle()
                return ready, len(factory.made)

    assert asyncio.run(main()) == (at_first, with_two_lent)


def test_an_environment_from_the_stock_is_there_at_once() -> None:
    clock = Clock()

    async def slow(attempt: int) -> None:
        await asyncio.sleep(0)
        clock.now += 5

    async def main() -> float:
        async with EnvironmentPool(Factory(slow), 1, PoolPolicy(prewarm=1), clock) as pool:
            await settle()
            async with pool.lend():
                return pool.stats().wait_s

    assert asyncio.run(main()) == 0.0


def test_a_stock_that_cannot_be_filled_costs_no_episode() -> None:
    async def once(attempt: int) -> None:
        if attempt == 1:
            raise EnvironmentFailure("no box free")

    async def main() -> PoolStats:
        async with EnvironmentPool(Factory(once), 2, PoolPolicy(prewarm=1)) as pool:
            await settle()
            await lend_times(pool, 1)
            return pool.stats()

    stats = asyncio.run(main())
    assert (stats.unstarted, stats.lent) == (1, 1)


def test_who_waits_for_a_start_takes_what_comes_back_first() -> None:
    """With a quota below the pool's size, starts hang; episodes must go on with the environments that exist."""

    async def second_hangs(attempt: int) -> None:
        if attempt > 1:
            await asyncio.sleep(3600)

    async def main() -> list[int]:
        factory = Factory(second_hangs)
        done: list[int] = []
        async with EnvironmentPool(factory, 3) as pool:

            async def episode(number: int) -> None:
                async with pool.lend():
                    await asyncio.sleep(0.001)
                    done.append(number)

            await asyncio.wait_for(asyncio.gather(*map(episode, range(6))), 5)
        assert len(factory.made) == 1
        return done

    assert sorted(asyncio.run(main())) == list(range(6))


def test_an_unexpected_error_of_the_factory_is_raised_as_it_is() -> None:
    async def wrong(attempt: int) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with EnvironmentPool(Factory(wrong), 1) as pool:
            await lend_times(pool, 1)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_closing_also_ends_what_is_lent_or_starting() -> None:
    async def second_hangs(attempt: int) -> None:
        if attempt > 1:
            await asyncio.sleep(3600)

    async def main() -> list[bool]:
        factory = Factory(second_hangs)
        pool = EnvironmentPool(factory, 2)
        async with pool.lend():
            waiting = asyncio.create_task(lend_times(pool, 1))
            await settle()
            await asyncio.wait_for(pool.close(), 5)
            closed = [environment.closed for environment in factory.made]
            with pytest.raises(RuntimeError, match="closed"):
                await waiting
        await pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            await lend_times(pool, 1)
        return closed

    assert asyncio.run(main()) == [True]


def test_an_episode_that_is_cancelled_while_it_waits_loses_no_environment() -> None:
    async def main() -> tuple[int, int]:
        factory = Factory()
        async with EnvironmentPool(factory, 1) as pool:
            async with pool.lend():
                waiting = asyncio.create_task(lend_times(pool, 1))
                await settle()
                waiting.cancel()
                await asyncio.wait([waiting])
            await lend_times(pool, 2)
            return len(factory.made), sum(not environment.closed for environment in factory.made)

    assert asyncio.run(main()) == (1, 1)


def test_what_it_all_cost() -> None:
    clock = Clock()

    async def slow(attempt: int) -> None:
        clock.now += 2  # two seconds to start

    async def main() -> tuple[PoolStats, PoolStats, PoolStats]:
        pool = EnvironmentPool(Factory(slow), 1, PoolPolicy(max_episodes=1), clock)
        async with pool.lend():
            clock.now += 10
            running = pool.stats()
        await settle()
        clock.now += 100  # nothing is alive
        async with pool.lend():
            clock.now += 4
        await pool.close()
        return running, pool.stats(), pool.stats() - running

    running, end, between = asyncio.run(main())
    assert (running.busy_s, running.alive_s, running.wait_s) == (10.0, 12.0, 2.0)
    assert (end.busy_s, end.alive_s, end.wait_s) == (14.0, 18.0, 4.0)
    assert (between.busy_s, between.alive_s, between.lent, between.started) == (4.0, 6.0, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 4),
    prewarm=st.integers(0, 4),
    limit=st.none() | st.integers(1, 3),
    fates=st.lists(st.sampled_from(["play", "break", "cancel", "unfit", "error"]), min_size=1, max_size=25),
    failing_starts=st.sets(st.integers(1, 30), max_size=8),
)
def test_whatever_happens_nothing_is_left_and_the_size_is_kept(
    size: int, prewarm: int, limit: int | None, fates: list[str], failing_starts: set[int]
) -> None:
    async def behaviour(attempt: int) -> None:
        await asyncio.sleep(0)
        if attempt in failing_starts:
            raise EnvironmentFailure("no start")

    async def episode(pool: EnvironmentPool, fate: str) -> str:
        try:
            async with pool.lend() as environment:
                await asyncio.sleep(0)
                if fate == "break":
                    raise EnvironmentFailure("dead")
                if fate == "cancel":
                    raise asyncio.CancelledError
                if fate == "error":
                    raise ZeroDivisionError
                if fate == "unfit":
                    environment.spent = 0  # type: ignore[attr-defined]
        except (EnvironmentFailure, asyncio.CancelledError, ZeroDivisionError) as error:
            return type(error).__name__
        return "played"

    async def main() -> None:
        factory = Factory(behaviour)
        async with EnvironmentPool(factory, size, PoolPolicy(prewarm, limit)) as pool:
            ends = await asyncio.wait_for(asyncio.gather(*[episode(pool, fate) for fate in fates]), 10)
            stats = pool.stats()
        assert all(environment.closed for environment in factory.made)
        assert factory.most_alive <= size
        assert stats.started == len(factory.made)
        assert stats.lent + sum(end == "EnvironmentFailure" for end in ends) >= len(fates)
        assert pool.stats().alive_s >= pool.stats().busy_s >= 0

    asyncio.run(main())
