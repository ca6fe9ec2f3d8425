"""`AndroidEnvironment`: a phone over adb behind the environment protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cua_agent.actions import Action, Point, Wait
from cua_agent.envs.android.commands import ADB_KEYBOARD, NotPossible, command_of
from cua_agent.envs.android.lease import lease_phone
from cua_agent.envs.android.phone import AdbServer, Phone
from cua_agent.envs.android.screen_tree import DUMP, centre_of
from cua_agent.envs.android.settings import AndroidSettings
from cua_agent.envs.android.start import NoStartKnown, Start, android_start, get_ready
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.pool import PoolPolicy
from cua_agent.tasks import CUATask

_SHOWN = 100
"""How much of a refusal the model is told, in characters."""


class AndroidEnvironment:
    """One phone. Nothing is sent twice: when the fate of an action is unknown, the episode is lost."""

    def __init__(self, phone: Phone, settings: AndroidSettings) -> None:
        self.phone = phone
        self._settings = settings
        self._task: CUATask | None = None
        self._before: Mapping[str, str] = {}
        self._size = (0, 0)

    async def reset(self, task: CUATask, seed: int) -> Observation:
        """The snapshot first, then apps without their data, then what the task is about as the seed draws it; a goal
        that nothing is known about starts from the home screen."""
        if self._settings.snapshot is not None:
            await self.phone.load_snapshot(self._settings.snapshot)
        for package in self._settings.clear:
            await self._expect(f"pm clear {package}", "Success")
        if self._settings.adb_keyboard:
            await self._expect(f"ime enable {ADB_KEYBOARD} && ime set {ADB_KEYBOARD}", "selected")
        try:
            start = android_start(task.validation, seed)
        except NoStartKnown:
            start = Start()
        await get_ready(start, self.phone.run, self.phone.probe)
        self._task, self._before = task, await task.validation.snapshot(self.phone.probe)
        return await self._observe("")

    async def step(self, action: Action) -> StepResult:
        error: str | None = None
        if isinstance(action, Wait):
            await asyncio.sleep(action.seconds)
        try:
            command = command_of(action, self._size, self._settings.adb_keyboard)
            output = await self.phone.run(command) if command else None
            if output is not None and output.exit_code:
                error = f"refused: {' '.join((output.stderr or output.stdout).split())[:_SHOWN]}"
        except NotPossible as reason:
            error = str(reason)
        return StepResult(await self._observe(error or ""), error=error)

    async def locate(self, target: str) -> Point | None:
        output = await self.phone.run(DUMP)
        pixel = None if output.exit_code else centre_of(output.stdout, target)
        width, height = self._size
        inside = pixel is not None and 0 <= pixel[0] < width and 0 <= pixel[1] < height
        return Point.at_pixel(*pixel, width, height) if pixel is not None and inside else None

    async def compute_reward(self) -> float:
        if self._task is None:
            raise RuntimeError("reset the environment first")
        return await self._task.validation.score(self.phone.probe, self._before)

    async def close(self) -> None:
        await self.phone.close()

    async def _observe(self, text: str) -> Observation:
        await asyncio.sleep(self._settings.screenshot_delay_s)
        screen = await self.phone.screenshot()
        self._size = screen.size
        return Observation(screen, text)

    async def _expect(self, command: str, word: str) -> None:
        output = await self.phone.run(command)
        if output.exit_code or word not in output.stdout:
            said = " ".join((output.stderr or output.stdout).split())
            raise EnvironmentFailure(f"{self.phone.serial}: {command}: {said[:160]}")


class PhoneFactory:
    """Waits for a free phone and lets one episode have it; the next may have another one. Waiting is bounded by
    `AndroidSettings.wait_s`."""

    bounds_starts = True
    policy = PoolPolicy(max_episodes=1)

    def __init__(self, server: AdbServer, settings: AndroidSettings) -> None:
        self._server = server
        self._settings = settings

    async def __call__(self) -> AndroidEnvironment:
        serial, give_back = await lease_phone(self._server, self._settings.serials, self._settings.wait_s)
        return AndroidEnvironment(Phone(self._server, serial, self._settings.call_timeout_s, give_back), self._settings)
