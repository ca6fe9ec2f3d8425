"""A page of one's own HTML as an `Environment`: pixel screenshots in, typed actions out."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.web.browser import DEFAULT_BROWSER, Chromium
from cua_agent.envs.web.gestures import ActionRefused, perform
from cua_agent.envs.web.page import WebPage
from cua_agent.error_text import first_line
from cua_agent.tasks import CUATask, Probe

Html = Callable[[CUATask, int], str]
"""The page that a task starts on, as HTML; the same task and seed always give the same one."""


@dataclass(frozen=True)
class Script:
    """A validator: how well the goal holds, 0..1 or true or false, by a JavaScript expression in the page."""

    expression: str

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 (the goal is absolute)
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        score = float(await probe(f"Number({self.expression})"))
        return 0.0 if math.isnan(score) else score


class PageEnvironment:
    """One page of a `Chromium`; every episode has a fresh one, without network. It never ends an episode itself.

    A page that crashed or hangs raises `EnvironmentFailure`.
    """

    def __init__(self, browser: Chromium, html: Html, size: tuple[int, int]) -> None:
        self._browser = browser
        self._html = html
        self._size = size
        self._page: WebPage | None = None
        self._task: CUATask | None = None
        self._before: Mapping[str, str] = {}

    async def reset(self, task: CUATask, seed: int) -> Observation:
        await self.close()
        page = self._page = await self._browser.new_page()
        async with self._reported("reset"):
            await page.page.goto("about:blank")  # where `elements.js` begins
            await page.page.set_content(self._html(task, seed))
        self._task, self._before = task, await task.validation.snapshot(self.probe)
        return await self._observe("")

    async def step(self, action: Action) -> StepResult:
        error: str | None = None
        async with self._reported(type(action).__name__) as page:
            try:
                await perform(page.page, action, self._size)
            except ActionRefused as refusal:
                error = str(refusal)
        return StepResult(await self._observe(error or ""), error=error)

    async def locate(self, target: str) -> Point | None:
        async with self._reported("locate") as page:
            return await page.locate(target)

    async def compute_reward(self) -> float:
        if self._task is None:
            raise RuntimeError("reset the environment first")
        return await self._task.validation.score(self.probe, self._before)

    async def probe(self, expression: str) -> str:
        """JavaScript's string of an expression's value in the page; the probe of validators."""
        async with self._reported("probe") as page:
            return str(await page.page.evaluate(f"String({expression})"))

    async def close(self) -> None:
        page, self._page = self._page, None
        if page is not None:
            await page.close()

    async def _observe(self, text: str) -> Observation:
        async with self._reported("screenshot") as page:
            return Observation(await page.screenshot(), text)

    @asynccontextmanager
    async def _reported(self, what: str) -> AsyncIterator[WebPage]:
        """The page, for one exchange; whatever the browser cannot do costs the episode."""
        from playwright.async_api import Error

        if self._page is None:
            raise EnvironmentFailure(f"{what}: the page is gone")
        try:
            yield self._page
        except (Error, OSError) as error:
            raise EnvironmentFailure(f"{what}: {first_line(error)}") from error


@asynccontextmanager
async def open_pages(
    html: Html, size: tuple[int, int] = (160, 210), browser: str = DEFAULT_BROWSER, scale: int = 1
) -> AsyncIterator[Callable[[], Awaitable[PageEnvironment]]]:
    """What `World.open` returns for pages of one's own: `html(task, seed)` is what an episode starts on, `size` the
    page's width and height in CSS pixels, `scale` the screenshot's pixels per CSS pixel. One browser process serves all
    environments. Raises `BrowserMissing`."""
    async with Chromium(browser, size, scale=scale) as chromium:

        async def new_page() -> PageEnvironment:
            return PageEnvironment(chromium, html, size)

        yield new_page
