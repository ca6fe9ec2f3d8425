"""`env=miniwob`: MiniWoB++ pages in Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from pydantic import Field
from pydantic.dataclasses import dataclass

from cua_agent.envs.miniwob import tasks
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.envs.web.browser import DEFAULT_BROWSER
from cua_agent.options import STRICT, PathText
from cua_agent.tasks import CUATask, EvalSplit


@dataclass(frozen=True, config=STRICT)
class MiniWobWorld:
    """MiniWoB++ in real Chromium."""

    PRACTICAL = frozenset({"browser_path"})

    browser_path: PathText = Field(default=DEFAULT_BROWSER, description="the browser's executable")

    def check(self) -> None:
        """Raise `BrowserMissing` when there is no such executable, or a package is missing."""
        from cua_agent.envs.miniwob.browser import MiniWobBrowser

        MiniWobBrowser(self.browser_path)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """One browser process; an environment is a context of it."""
        from cua_agent.envs.miniwob.browser import MiniWobBrowser
        from cua_agent.envs.miniwob.environment import MiniWobEnvironment

        async with MiniWobBrowser(self.browser_path) as browser:
            yield partial(MiniWobEnvironment.open, browser)

    def training_tasks(self) -> list[CUATask]:
        """The pages that are trained on."""
        return tasks.training_tasks()

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same pages, or those that training never shows."""
        return tasks.eval_tasks(split)
