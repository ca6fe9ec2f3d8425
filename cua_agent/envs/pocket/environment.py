"""`PocketEnvironment`: the simulated phone behind the environment protocol."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import cast

from cua_agent.actions import Action, Point, Wait
from cua_agent.envs.base import Observation, StepResult
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.latency import Latency
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH, elements, find_element
from cua_agent.envs.pocket.shell import run_command
from cua_agent.envs.pocket.state import Layout, PhoneState, make_state
from cua_agent.tasks import CUATask
from cua_agent.touch import Place

MAX_WAIT_S = 0.05  # a simulated phone has nothing to wait for


class PocketEnvironment:
    """One phone. `layout` is how freely the seed may place icons and rows, `scale` the screenshot's size
    (128 x 224 pixels times `scale`), `latency` the delay of every action."""

    def __init__(self, layout: Layout = "shuffled", scale: int = 1, latency: Latency | None = None) -> None:
        self.layout = layout
        self.scale = scale
        self.latency = latency or Latency()
        self._state: PhoneState | None = None
        self._task: CUATask | None = None
        self.before: Mapping[str, str] = {}  # the validator's snapshot of the start

    @property
    def task(self) -> CUATask:
        """The task of the running episode."""
        if self._task is None:
            raise RuntimeError("reset the environment first")
        return self._task

    @property
    def state(self) -> PhoneState:
        """The phone's state; for tests and for the oracle, never for the agent."""
        if self._state is None:
            raise RuntimeError("reset the environment first")
        return self._state

    async def reset(self, task: CUATask, seed: int) -> Observation:
        self._task, self._state = task, make_state(seed, self.layout)
        self.before = await task.validation.snapshot(self.shell)
        await self._delay()
        return self._observe()

    async def step(self, action: Action) -> StepResult:
        if isinstance(action, Wait):
            await asyncio.sleep(min(action.seconds, MAX_WAIT_S))
        error = apply_action(self.state, action)
        await self._delay()
        return StepResult(self._observe(error or ""), error=error)

    async def snapshot(self) -> tuple[PhoneState, Mapping[str, str]]:
        return copy.deepcopy(self.state), self.before

    async def restore(self, task: CUATask, snapshot: object) -> Observation:
        state, self.before = cast(tuple[PhoneState, Mapping[str, str]], snapshot)
        self._task, self._state = task, copy.deepcopy(state)
        await self._delay()
        return self._observe()

    async def locate(self, target: str) -> Point | None:
        element = find_element(self.state, target)
        if element is None:
            return None
        return Point.at_pixel(*element.centre, WIDTH, HEIGHT)

    async def compute_reward(self) -> float:
        return await self.task.validation.score(self.shell, self.before)

    async def shell(self, command: str) -> str:
        """Run an Android shell command; the probe of this environment's validators."""
        return run_command(self.state, command)

    async def close(self) -> None:
        self._state = self._task = None

    def _observe(self, text: str = "") -> Observation:
        state = self.state
        places = tuple(Place.of_pixels(each.name, each.box, WIDTH, HEIGHT) for each in elements(state))
        return Observation(draw(state, self.scale), text, describe_screen(state), state=state.identity(), places=places)

    async def _delay(self) -> None:
        seconds = self.latency.sample()
        if seconds > 0:
            await asyncio.sleep(seconds)
