"""MiniWoB++ as an `Environment`: pixel screenshots in, typed actions out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from playwright.async_api import Error as PlaywrightError

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.miniwob.browser import MiniWobBrowser
from cua_agent.envs.miniwob.page import SIZE
from cua_agent.envs.web.gestures import ActionRefused, perform
from cua_agent.envs.web.page import WebPage
from cua_agent.error_text import first_line
from cua_agent.tasks import CUATask

EPISODE_OVER = "the episode is over"


class MiniWobEnvironment:
    """One page of a `MiniWobBrowser`. The goal is the text of the observation that `reset` returns.

    Every exchange with the page is bounded in time; a page that crashed or hangs raises `EnvironmentFailure`, and the
    next `reset` takes a fresh one.
    """

    def __init__(self, browser: MiniWobBrowser, page: WebPage) -> None:
        self._browser = browser
        self._page: WebPage | None = page
        self._task: CUATask | None = None
        self._over = False

    @classmethod
    async def open(cls, browser: MiniWobBrowser) -> Self:
        """A fresh environment on `browser`, which is launched again when it died. Raises `EnvironmentFailure`."""
        return cls(browser, await browser.new_page())

    async def reset(self, task: CUATask, seed: int) -> Observation:
        """Start the page `task.category` in the state that `seed` determines."""
        if self._page is None:
            self._page = await self._browser.new_page()
        async with self._bounded("reset") as page:
            # Always loaded anew: MiniWoB++'s own restart keeps what was typed into some of its pages.
            await page.page.mouse.move(0, 0)  # nothing is hovered at the start
            await page.page.goto(self._browser.url(task.category))
            goal: str = await page.page.evaluate("seed => cua.start(seed)", str(seed))
            self._task, self._over = task, False
            return Observation(await page.screenshot(), goal)

    async def step(self, action: Action) -> StepResult:
        if self._over:
            async with self._bounded("screenshot") as page:
                return StepResult(Observation(await page.screenshot(), EPISODE_OVER), True, EPISODE_OVER)
        error: str | None = None
        async with self._bounded(type(action).__name__) as page:
            try:
                await perform(page.page, action, SIZE)
            except ActionRefused as refusal:
                error = str(refusal)
            self._over = bool(await page.page.evaluate("cua.settled()"))
            return StepResult(Observation(await page.screenshot(), error or ""), self._over, error)

    async def locate(self, target: str) -> Point | None:
        async with self._bounded("locate") as page:
            return await page.locate(target)

    async def compute_reward(self) -> float:
        if self._task is None:
            raise RuntimeError("compute_reward before reset")
        return await self._task.validation.score(self.probe, {})

    async def probe(self, expression: str) -> str:
        """JavaScript's string of an expression's value in the page (for validators and experts)."""
        async with self._bounded("probe") as page:
            return str(await page.page.evaluate(f"String({expression})"))

    async def close(self) -> None:
        page, self._page = self._page, None
        if page is not None:
            await page.close()

    @asynccontextmanager
    async def _bounded(self, what: str) -> AsyncIterator[WebPage]:
        """The page, for one exchange; whatever goes wrong with it costs the episode, and the page."""
        page = self._page
        if page is None:
            raise EnvironmentFailure(f"{what}: the page is gone")
        try:
            async with asyncio.timeout(self._browser.timeout_s):
                yield page
        except (PlaywrightError, OSError) as error:  # a time-out is an OSError
            await self.close()
            raise EnvironmentFailure(f"{what}: {first_line(error)}") from error
