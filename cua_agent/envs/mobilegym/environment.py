"""`MobileGymEnvironment`: MobileGym's own environment, tasks and judge behind the environment protocol."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench_env.env.base import Action as BenchAction
from bench_env.env.base import ActionType
from bench_env.env.mobile_gym import MobileGymEnv
from bench_env.runner.base import Controller, Evaluator, ExecutionResult
from bench_env.task.registry import TaskRegistry
from PIL import Image
from playwright.async_api import async_playwright

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.mobilegym.mapping import NoMeaning, calls_of
from cua_agent.error_text import type_and_line
from cua_agent.tasks import CUATask

_FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")


class MobileGymEnvironment:
    """One phone: a browser of its own. Whatever MobileGym raises, and an error of its judge, costs the episode."""

    def __init__(self, playwright: Any, browser: Any, phone: MobileGymEnv) -> None:
        self._playwright = playwright
        self._browser = browser
        self._phone = phone
        self._task: Any = None
        self._first: Any = None
        self._last: Any = None
        self._side_effects = 0

    @classmethod
    async def open(cls, url: str, browser_path: str, delay_s: float) -> MobileGymEnvironment:
        """Start a browser and open the phone in it. Raises `EnvironmentFailure`."""
        playwright = await async_playwright().start()
        with _reported("start"):
            try:
                flags = MobileGymEnv.get_launch_args(headless=True).get("args", [])
                browser = await playwright.chromium.launch(executable_path=browser_path, args=[*flags, *_FLAGS])
                phone = MobileGymEnv(url=url, browser=browser, delay_after_action=delay_s, verbose=False)
                return cls(playwright, browser, await phone.start())
            except BaseException:
                await playwright.stop()  # and the browser with it
                raise

    async def reset(self, task: CUATask, seed: int) -> Observation:
        """The text is the goal: MobileGym draws its parameters by the seed."""
        with _reported("reset"):
            self._end_task()
            self._task = TaskRegistry().create_task(task.name, _seed=seed)
            self._first, _ = await Controller.setup(self._phone, self._task)
            self._last, self._side_effects = self._first, 0
            return Observation(_picture(self._last), self._task.description)

    async def step(self, action: Action) -> StepResult:
        error: str | None = None
        with _reported(type(action).__name__):
            try:
                for kind, data in calls_of(action):
                    self._last = (await self._phone.step(BenchAction(ActionType(kind), data))).observation
            except NoMeaning as reason:
                error = str(reason)
            return StepResult(Observation(_picture(self._last), error or ""), error=error)

    async def locate(self, target: str) -> Point | None:  # noqa: ARG002 (MobileGym names nothing)
        return None

    async def compute_reward(self) -> float:
        """The part of the judge's checks that pass; 0 when something changed that should not have."""
        with _reported("judge"):
            state = await self._phone.get_state(required_apps=list(self._task.apps) or None)
            last = dataclasses.replace(self._last, state=state)
            played = ExecutionResult(steps=0, trace=[], runtime_s=0.0, finished=True, truncated=False)
            verdict = await Evaluator().evaluate(self._task, self._first, last, played)
        if verdict.judge_error:
            raise EnvironmentFailure(f"judge: {verdict.judge_error}")
        self._side_effects = len(verdict.warnings)
        return float(verdict.progress) if verdict.clean else 0.0

    async def side_effects(self) -> int:
        """What the judge found changed besides the goal."""
        return self._side_effects

    async def close(self) -> None:
        self._end_task()
        try:
            await self._phone.close()
            await self._browser.close()
        finally:
            await self._playwright.stop()

    def _end_task(self) -> None:
        if self._task is not None:
            self._task.teardown(self._phone)
            self._task = None


def _picture(observation: Any) -> Image.Image:
    return Image.open(io.BytesIO(observation.screenshot_bytes)).convert("RGB")


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EnvironmentFailure(f"{what}: {type_and_line(error)[:200]}") from error
