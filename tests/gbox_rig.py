"""Playing on a local GBox: settings, a pool of boxes, and episodes that a simulated phone in this process mirrors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

from cua_agent.actions import Action, ReportTaskComplete, Target
from cua_agent.envs.base import Environment
from cua_agent.envs.gbox.box_lifecycle import GBoxFactory, open_gbox
from cua_agent.envs.gbox.settings import GBoxSettings
from cua_agent.envs.gbox.world import GBoxWorld
from cua_agent.envs.local_gbox.server import LocalGBox
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.tasks import CUATask

TASKS = {task.id: task for task in GBoxWorld(reset="pocket").training_tasks()}
WIFI_ON = TASKS["toggle/wi-fi-on/w0"]


def settings_for(server: LocalGBox, **changes: Any) -> GBoxSettings:
    """Quick settings: nothing takes long on a simulated phone."""
    quick = GBoxSettings(
        base_url=server.base_url,
        api_key=server.api_key,
        reset="pocket",
        screenshot_delay_s=0.0,
        call_timeout_s=5.0,
        command_timeout_s=5.0,
        create_timeout_s=5.0,
    )
    return replace(quick, **changes)


@asynccontextmanager
async def factory_on(server: LocalGBox, **changes: Any) -> AsyncIterator[GBoxFactory]:
    async with open_gbox(settings_for(server, **changes), "shuffled", 1) as factory:
        yield factory


@asynccontextmanager
async def pool_on(server: LocalGBox, size: int, **changes: Any) -> AsyncIterator[EnvironmentPool]:
    async with factory_on(server, **changes) as factory, EnvironmentPool(factory, size) as pool:
        yield pool


@asynccontextmanager
async def box_on(server: LocalGBox, **changes: Any) -> AsyncIterator[Environment]:
    """One box for as long as the block lasts."""
    async with pool_on(server, 1, **changes) as pool, pool.lend() as environment:
        yield environment


async def play_expert(environment: Environment, task: CUATask, seed: int) -> float:
    """Play `task` with the scripted expert; returns the score.

    A phone in this process goes through the same episode: the expert reads its state, and box and phone must show the
    same pixels and name the same places at every step.
    """
    mirror = PocketEnvironment()
    seen, mirrored = await environment.reset(task, seed), await mirror.reset(task, seed)
    assert seen.text == task.description
    expert = Expert(task.validation, mirror.before)
    for _ in range(task.max_steps):
        assert seen.screenshot.tobytes() == mirrored.screenshot.tobytes()
        action = expert.action(mirror.state)
        if isinstance(action, ReportTaskComplete):
            break
        action = await grounded(environment, action)
        assert action == await grounded(mirror, expert.action(mirror.state))
        seen = (await environment.step(action)).observation
        mirrored = (await mirror.step(action)).observation
    return await environment.compute_reward()


async def grounded(environment: Environment, action: Action) -> Action:
    """`action` with the place of every element that it names."""
    points: dict[str, Any] = {}
    for field in fields(action):
        value = getattr(action, field.name)
        if isinstance(value, Target):
            points[field.name] = await environment.locate(value.name)
            assert points[field.name] is not None, value.name
    return replace(action, **points)
