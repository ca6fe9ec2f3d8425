"""`env=tests.stuck_world:make`: simulated phones, the fifth action on which never ends, in one way or another."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from cua_agent.actions import Action, Point
from cua_agent.envs.base import Observation, StepResult
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.world import PocketWorld
from cua_agent.tasks import CUATask

Kind = Literal["hangs", "blocks", "plain"]
FOR_EVER_S = 3600.0
_ACTIONS = itertools.count(1)


class StuckPhone(PocketEnvironment):
    """`blocks`: the call holds up everything on its event loop; else it only never ends."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self._kind = kind

    async def step(self, action: Action) -> StepResult:
        if next(_ACTIONS) == 5:
            if self._kind == "blocks":
                time.sleep(FOR_EVER_S)
            await asyncio.sleep(FOR_EVER_S)
        return await super().step(action)


class PlainPhone:
    """A phone of plain functions."""

    def __init__(self) -> None:
        self._phone = PocketEnvironment()

    def reset(self, task: CUATask, seed: int) -> Observation:
        return asyncio.run(self._phone.reset(task, seed))

    def step(self, action: Action) -> StepResult:
        if next(_ACTIONS) == 5:
            time.sleep(FOR_EVER_S)
        return asyncio.run(self._phone.step(action))

    def locate(self, target: str) -> Point | None:
        return asyncio.run(self._phone.locate(target))

    def compute_reward(self) -> float:
        return asyncio.run(self._phone.compute_reward())

    def close(self) -> None:
        asyncio.run(self._phone.close())


class StuckWorld(PocketWorld):
    kind: Kind

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        yield PlainPhone if self.kind == "plain" else self._new_phone

    async def _new_phone(self) -> StuckPhone:
        return StuckPhone(self.kind)


def make(kind: Kind) -> StuckWorld:
    world = StuckWorld()
    object.__setattr__(world, "kind", kind)
    return world
