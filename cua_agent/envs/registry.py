"""The worlds that there are: what each needs, how its environments are opened, and the tasks that it hands in."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, Protocol

from cua_agent.envs.base import Environment
from cua_agent.envs.gbox.settings import GBoxSettings, check_requirements
from cua_agent.envs.guard import GuardedFactory
from cua_agent.envs.miniwob import tasks as miniwob_tasks
from cua_agent.envs.pocket import tasks as pocket_tasks
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.tasks import EnvName, TaskSource, register_tasks

_TASKS: dict[EnvName, TaskSource] = {
    "pocket": pocket_tasks,
    "miniwob": miniwob_tasks,
    "gbox": pocket_tasks,  # a phone as well, and validators only need its shell
}

for _name, _source in _TASKS.items():
    register_tasks(_name, _source)


class LatencySettings(Protocol):
    """Delay of every action; see `cua_agent.envs.pocket.latency.Latency`."""

    @property
    def kind(self) -> Literal["none", "constant", "lognormal"]:
        """Distribution of the delay."""
        ...

    @property
    def mean_s(self) -> float:
        """Mean delay, seconds."""
        ...

    @property
    def sigma(self) -> float:
        """Lognormal: sigma of the underlying normal."""
        ...


class EnvironmentSettings(Protocol):
    """Which world, and how it looks: `layout` and `scale` are the simulated phone's (also behind gbox), `latency` is
    pocket's, `browser_path` is miniwob's."""

    @property
    def name(self) -> EnvName:
        """The world."""
        ...

    @property
    def layout(self) -> Literal["fixed", "themed", "shuffled"]:
        """Order of the phone's home screen."""
        ...

    @property
    def scale(self) -> int:
        """Screenshot pixels per logical pixel of the phone."""
        ...

    @property
    def latency(self) -> LatencySettings:
        """Delay of every action on pocket."""
        ...

    @property
    def browser_path(self) -> str:
        """The browser of miniwob."""
        ...

    @property
    def timeout_s(self) -> float:
        """Longest wait for one call of an environment, seconds."""
        ...

    @property
    def gbox(self) -> GBoxSettings:
        """How boxes are got."""
        ...


def check_world(settings: EnvironmentSettings) -> None:
    """Raise `WorldUnavailable` when something that the world needs is missing, before anything heavy is loaded."""
    if settings.name == "gbox":
        check_requirements(settings.gbox)


@asynccontextmanager
async def environment_factory(settings: EnvironmentSettings) -> AsyncIterator[EnvironmentFactory]:
    """A function that starts one environment after the other, each guarded by `timeout_s`; what they share (a browser)
    lives as long as this.

    Raises `WorldUnavailable`.
    """
    check_world(settings)
    limit = settings.timeout_s
    if settings.name == "gbox":
        from cua_agent.envs.gbox.box_lifecycle import open_gbox

        async with open_gbox(settings.gbox, settings.layout, settings.scale) as new_box:
            yield GuardedFactory(new_box, limit, start_timeout_s=None)  # which has keys of its own
        return
    if settings.name == "miniwob":
        from cua_agent.envs.miniwob.browser import MiniWobBrowser
        from cua_agent.envs.miniwob.environment import MiniWobEnvironment

        async with MiniWobBrowser(settings.browser_path) as browser:
            yield GuardedFactory(partial(MiniWobEnvironment.open, browser), limit, limit)
        return

    from cua_agent.envs.pocket.environment import PocketEnvironment
    from cua_agent.envs.pocket.latency import Latency

    delay, seeds = settings.latency, itertools.count()

    async def new_phone() -> Environment:
        # Every phone draws its own delays, the same in every run.
        latency = Latency(delay.kind, delay.mean_s, delay.sigma, seed=next(seeds))
        return PocketEnvironment(settings.layout, settings.scale, latency)

    yield GuardedFactory(new_phone, limit, limit)
