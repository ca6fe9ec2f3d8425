import asyncio

import pytest

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.envs.pool import EnvironmentPool
from tests.toy_world import SquareEnvironment


class Factory:
    def __init__(self) -> None:
        self.made: list[SquareEnvironment] = []

    async def __call__(self) -> Environment:
        self.made.append(SquareEnvironment())
        return self.made[-1]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_environments_start_lazily_and_are_reused() -> None:
    factory = Factory()

    async def scenario() -> None:
        pool = EnvironmentPool(factory, size=3)
        assert factory.made == []
        for _ in range(5):
            async with pool.lend():
                pass

    asyncio.run(scenario())
    assert len(factory.made) == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_never_more_than_size_are_lent(size: int) -> None:
    factory = Factory()
    lent, most = 0, 0

    async def scenario() -> None:
        pool = EnvironmentPool(factory, size)

        async def episode() -> None:
            nonlocal lent, most
            async with pool.lend():
                lent += 1
                most = max(most, lent)
                await asyncio.sleep(0)
                lent -= 1

        await asyncio.gather(*[episode() for _ in range(20)])

    asyncio.run(scenario())
    assert most == size
    assert len(factory.made) == size


def test_a_broken_environment_is_closed_and_replaced() -> None:
    factory = Factory()

    async def scenario() -> EnvironmentPool:
        pool = EnvironmentPool(factory, size=1)
        with pytest.raises(EnvironmentFailure):
            async with pool.lend():
                raise EnvironmentFailure("dead")
        async with pool.lend() as second:
            assert second is factory.made[1]
        return pool

    pool = asyncio.run(scenario())
    assert [env.closed for env in factory.made] == [True, False]
    assert pool.stats().broken == 1


def test_another_error_keeps_the_environment() -> None:
    factory = Factory()

    async def scenario() -> None:
        pool = EnvironmentPool(factory, size=1)
        with pytest.raises(ZeroDivisionError):
            async with pool.lend():
                raise ZeroDivisionError
        async with pool.lend() as again:
            assert again is factory.made[0]

    asyncio.run(scenario())


def test_a_factory_that_fails_frees_its_slot() -> None:
    attempts = 0

    async def factory() -> Environment:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise EnvironmentFailure("no box free")
        return SquareEnvironment()

    async def scenario() -> None:
        pool = EnvironmentPool(factory, size=1)
        with pytest.raises(EnvironmentFailure):
            async with pool.lend():
                pass
        async with pool.lend():
            pass

    asyncio.run(asyncio.wait_for(scenario(), 5))
    assert attempts == 2


def test_busy_seconds_count_running_and_finished_episodes() -> None:
    clock = Clock()

    async def scenario() -> None:
        pool = EnvironmentPool(Factory(), size=2, clock=clock)
        async with pool.lend():
            clock.now = 3.0
            async with pool.lend():
                clock.now = 5.0
                assert pool.stats().busy_s == 5.0 + 2.0
            clock.now = 6.0
        clock.now = 100.0
        assert pool.stats().busy_s == 6.0 + 2.0

    asyncio.run(scenario())


def test_close_closes_all_even_when_one_refuses() -> None:
    class Stubborn(SquareEnvironment):
        async def close(self) -> None:
            await super().close()
            raise RuntimeError("will not close")

    made: list[SquareEnvironment] = []

    async def factory() -> Environment:
        made.append(Stubborn())
        return made[-1]

    async def scenario() -> None:
        async with EnvironmentPool(factory, size=2) as pool, pool.lend(), pool.lend():
            pass

    asyncio.run(scenario())
    assert [env.closed for env in made] == [True, True]


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="size=0"):
        EnvironmentPool(Factory(), size=0)
