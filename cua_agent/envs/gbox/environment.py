"""`GBoxEnvironment`: a box behind the environment protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cua_agent.actions import Action, Point, Wait
from cua_agent.envs.base import Observation, StepResult
from cua_agent.envs.gbox.box import Box
from cua_agent.envs.gbox.calls import CallRefused
from cua_agent.envs.gbox.gestures import Gesture, NoGesture, gestures_of
from cua_agent.envs.gbox.screens import Screen
from cua_agent.envs.gbox.settings import GBoxSettings
from cua_agent.envs.gbox.start import start_on_android, start_on_pocket
from cua_agent.envs.pocket.state import Layout
from cua_agent.tasks import CUATask

_SHOWN = 100
"""How much of a refusal the model is told, in characters."""


class GBoxEnvironment:
    """One box. `layout` and `pixel_scale` are those of a simulated phone (`reset="pocket"`).

    An action is sent once; when its fate is unknown the episode is lost (`EnvironmentFailure`), never played on. A box
    on which something was broken off is not fit for another episode, because that might still take effect.
    """

    def __init__(self, box: Box, settings: GBoxSettings, layout: Layout = "shuffled", pixel_scale: int = 1) -> None:
        self.box = box
        self._settings = settings
        self._layout = layout
        self._pixel_scale = pixel_scale
        self._task: CUATask | None = None
        self._screen: Screen | None = None
        self._before: Mapping[str, str] = {}
        self._clean = True

    async def reset(self, task: CUATask, seed: int) -> Observation:
        """Start `task` as `GBoxSettings.reset` says. The text is the goal when the box has words of its own for it."""
        with self._acting():
            goal = await self._start(task, seed)
        self._task = task
        self._before = await task.validation.snapshot(self.probe)
        self._screen = await self.box.screenshot()
        return Observation(self._screen.image, goal)

    async def _start(self, task: CUATask, seed: int) -> str:
        if self._settings.reset == "pocket":
            return await start_on_pocket(self.box, task, seed, self._layout, self._pixel_scale)
        if self._settings.reset == "android":
            await start_on_android(self.box, task, seed)
        return ""

    async def step(self, action: Action) -> StepResult:
        error: str | None = None
        try:
            gestures = gestures_of(action, self._seen.image.size, self._settings.box)
            with self._acting():
                self._screen = await self._carry_out(action, gestures)
        except NoGesture as reason:
            error = str(reason)
        except CallRefused as reason:
            error = f"refused: {str(reason)[:_SHOWN]}"
            self._screen = await self.box.screenshot()
        return StepResult(Observation(self._seen.image, error or ""), error=error)

    async def _carry_out(self, action: Action, gestures: list[Gesture]) -> Screen:
        """The screen afterwards: it comes along with the last gesture."""
        if isinstance(action, Wait):
            await asyncio.sleep(action.seconds)
        for gesture in gestures[:-1]:
            await self.box.perform(gesture, look=False)
        screen = await self.box.perform(gestures[-1], look=True) if gestures else None
        return screen or await self.box.screenshot()

    async def locate(self, target: str) -> Point | None:
        return await self.box.locate(target, self._seen)

    async def compute_reward(self) -> float:
        if self._task is None:
            raise RuntimeError("reset the environment first")
        return await self._task.validation.score(self.probe, self._before)

    async def probe(self, command: str) -> str:
        """Output of a shell command that only reads; the probe of the validators."""
        return (await self.box.run(command, only_reads=True)).stdout

    async def is_fit(self) -> bool:
        """Whether the box runs and nothing was left unfinished on it."""
        return self._clean and await self.box.is_running()

    async def close(self) -> None:
        await self.box.end()

    @property
    def _seen(self) -> Screen:
        """What the agent looks at."""
        if self._screen is None:
            raise RuntimeError("reset the environment first")
        return self._screen

    @contextmanager
    def _acting(self) -> Iterator[None]:
        self._clean = False
        try:
            yield
        except CallRefused:
            self._clean = True  # nothing was done
            raise
        self._clean = True
