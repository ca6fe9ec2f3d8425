"""The world of Android phones on the fake adb server."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cua_agent.envs.android.world import AndroidPhones
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import open_world
from cua_agent.tasks import seed_for
from tests.fake_adb import FakeAdb

T = TypeVar("T")
TASKS = {task.id: task for task in AndroidPhones().training_tasks()}
WIFI_ON = TASKS["toggle/wi-fi-on/w0"]
SEED = seed_for("train", 3)


def world_on(server: FakeAdb, **options: Any) -> AndroidPhones:
    return AndroidPhones(**{"port": server.port, "screenshot_delay_s": 0.0, **options})


@asynccontextmanager
async def pool_on(server: FakeAdb, size: int = 1, **options: Any) -> Any:
    async with (
        open_world(world_on(server, **options), timeout_s=120) as factory,
        EnvironmentPool(factory, size) as pool,
    ):
        yield pool


def on_phone(server: FakeAdb, use: Callable[[Any], Awaitable[T]], **options: Any) -> T:
    async def main() -> T:
        async with pool_on(server, **options) as pool, pool.lend() as environment:
            return await use(environment)

    return asyncio.run(main())
