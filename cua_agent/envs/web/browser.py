"""One Chromium process that serves any number of pages, each in its own browser context."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
from types import TracebackType
from typing import Any, Self

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.web.page import CLOSE_TIMEOUT_S, ELEMENTS, WebPage
from cua_agent.error_text import first_line
from cua_agent.installation import hint
from cua_agent.scratch import scratch_directory, temporary_files_in

DEFAULT_BROWSER = "/usr/bin/chromium-headless-shell"
INSTALL_BROWSER = hint(
    checkout="run `make browser`",
    installed="install a headless Chromium (Debian: apt-get install chromium-headless-shell)",
)
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-smooth-scrolling",  # a wheel event takes effect at once, not over several frames
    "--disable-partial-raster",  # the same state gives the same pixels, whatever was drawn before it
    "--force-color-profile=srgb",
)


class BrowserMissing(WorldUnavailable):
    """The browser, or the Python package that drives it, is not installed; the message is one line."""


class Chromium:
    """Owns the browser process; relaunches it for the next page when it died. Pages have no network.

    Args:
        executable: path or name of a Chromium binary (headless shell or full browser).
        size: width and height of a page in CSS pixels.
        script: JavaScript that runs in every page before the page's own, after `elements.js`.
        scale: screenshot pixels per CSS pixel.
        timeout_s: bound on every single exchange with the browser.

    Use as an async context manager inside one event loop. Raises `BrowserMissing` before anything is started.
    """

    def __init__(
        self,
        executable: str = DEFAULT_BROWSER,
        size: tuple[int, int] = (160, 210),
        script: str = "",
        scale: int = 1,
        timeout_s: float = 15.0,
    ) -> None:
        self.scale = scale
        self.timeout_s = timeout_s
        self._size = size
        self._executable = find_browser(executable)
        self._script = ELEMENTS + script
        self._launching = asyncio.Lock()
        self._playwright: Any = None
        self._browser: Any = None
        self._scratch = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._ensure_running()
        except Exception as error:  # the file is no browser, or lacks a library
            await self.close()
            raise BrowserMissing(
                f"env.args.browser_path={self._executable!r} does not start: {INSTALL_BROWSER} ({first_line(error)})"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def new_page(self) -> WebPage:
        """A blank page in a new context. Raises `EnvironmentFailure` when even a fresh browser does not give one."""
        try:
            return await self._new_page_once()
        except EnvironmentFailure:  # the browser was dead or hung, and has been stopped
            return await self._new_page_once()

    async def _new_page_once(self) -> WebPage:
        browser = None
        try:
            async with asyncio.timeout(self.timeout_s):
                browser = await self._ensure_running()
                width, height = self._size
                context = await browser.new_context(
                    viewport={"width": width, "height": height}, device_scale_factor=self.scale, offline=True
                )
                await context.add_init_script(self._script)
                page = await context.new_page()
                return WebPage(context, page, await context.new_cdp_session(page), self._size, self.scale)
        except Exception as error:  # also what Playwright raises when its driver process is dead
            async with self._launching:
                if self._browser is browser:  # else somebody has replaced it already
                    await self._stop()
            raise EnvironmentFailure(f"no new page: {first_line(error)}") from error

    async def close(self) -> None:
        async with self._launching:
            await self._stop()

    async def _ensure_running(self) -> Any:
        async with self._launching:
            if self._browser is None or not self._browser.is_connected():
                await self._stop()
                self._browser = await self._launch()
            return self._browser

    async def _launch(self) -> Any:
        from playwright.async_api import async_playwright

        profiles = self._scratch.enter_context(scratch_directory("browser"))
        with temporary_files_in(profiles):  # a killed browser leaves its profile behind
            self._playwright = await async_playwright().start()
        return await self._playwright.chromium.launch(
            executable_path=self._executable, args=list(_FLAGS), timeout=1000 * self.timeout_s
        )

    async def _stop(self) -> None:
        browser, playwright = self._browser, self._playwright
        self._browser = self._playwright = None
        for stop in (browser and browser.close, playwright and playwright.stop):
            if stop:
                with contextlib.suppress(Exception):  # a dead process cannot be closed twice
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await stop()
        self._scratch.close()


def find_browser(executable: str) -> str:
    """The path of a browser. Raises `BrowserMissing`, also when the package that drives it is not there."""
    if importlib.util.find_spec("playwright") is None:
        raise BrowserMissing("web pages need the package playwright: pip install 'cua-grpo[miniwob]'")
    found = shutil.which(executable)
    if found is None:
        raise BrowserMissing(
            f"env.args.browser_path={executable!r} is not an executable: {INSTALL_BROWSER}, or give the path of one"
        )
    return found
