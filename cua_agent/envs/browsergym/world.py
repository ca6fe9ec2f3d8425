"""`env=browsergym`: tasks of BrowserGym in real Chromium."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.browsergym.settings import Settings
from cua_agent.envs.browsergym.suites import ID
from cua_agent.envs.guard import AnyFactory
from cua_agent.envs.own_score import OwnScore
from cua_agent.envs.web.browser import DEFAULT_BROWSER, find_browser
from cua_agent.installation import hint
from cua_agent.options import STRICT, PathText
from cua_agent.tasks import CUATask, EvalSplit

TaskId = Annotated[str, Field(pattern=ID)]
Pixels = Annotated[int, Field(ge=16, le=4096)]
_INSTALL = hint(
    checkout="make setup",
    installed="pip install 'cua-grpo[miniwob,gymnasium]' beautifulsoup4 'lxml<6', then pip install --no-deps "
    "browsergym-core==0.14.3 browsergym-miniwob==0.14.3",
)


@dataclass(frozen=True, config=STRICT)
class BrowserGymWorld:
    """Tasks of BrowserGym in Chromium; all but MiniWoB++'s need packages and servers of their own."""

    PRACTICAL = frozenset({"browser_path"})

    ids: tuple[TaskId, ...] = Field(
        default=("browsergym/miniwob.click-button", "browsergym/miniwob.click-link", "browsergym/miniwob.enter-text"),
        min_length=1,
        description="the tasks that are trained on; module:browsergym/... imports a module that registers it",
    )
    held_out: tuple[TaskId, ...] = Field(default=(), description="tasks that evaluation adds; empty: those of ids")
    task_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the tasks")
    max_steps: int = Field(default=10, ge=1, description="turns of an episode")
    viewport: tuple[Pixels, Pixels] | None = Field(
        default=None, description="width and height of the page in CSS pixels; null: the task's own"
    )
    scale: float | None = Field(
        default=None, gt=0, le=4, description="screenshot pixels per CSS pixel; null: the task's own"
    )
    settle_s: float = Field(
        default=0.5, ge=0, le=30, description="from an action to the screenshot after it, BrowserGym's own pause"
    )
    browser_path: PathText = Field(default=DEFAULT_BROWSER, description="the browser's executable")

    def check(self) -> None:
        """Raise `WorldUnavailable` when a package, the browser or a task is missing."""
        for module in ("browsergym", "gymnasium"):
            if importlib.util.find_spec(module) is None:
                raise WorldUnavailable(f"env=browsergym needs the package {module}: {_INSTALL}")
        find_browser(self.browser_path)
        from cua_agent.envs.browsergym.suites import NoSuite, import_suite

        for task_id in (*self.ids, *self.held_out):
            try:
                import_suite(task_id)
            except NoSuite as error:
                raise WorldUnavailable(f"env.args.ids: {error}") from error

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AnyFactory]:
        """Every environment is a process of its own, with its own browser; all end with this."""
        from cua_agent.envs.browsergym.environment import BrowserGymEnvironment

        settings = Settings(self.browser_path, self.viewport, self.scale, self.settle_s, self.task_kwargs)
        started: list[BrowserGymEnvironment] = []

        def start() -> BrowserGymEnvironment:
            started.append(BrowserGymEnvironment(settings))
            return started[-1]

        try:
            yield start
        finally:
            for environment in started:
                environment.close()

    def training_tasks(self) -> list[CUATask]:
        """One for each id."""
        return [self._task(task_id) for task_id in self.ids]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same ones, or those of `held_out`."""
        return [self._task(task_id) for task_id in (self.ids if split == "seeds" else self.held_out)]

    def _task(self, task_id: str) -> CUATask:
        name = task_id.rpartition("browsergym/")[2]
        goal = "what the page asks for"  # the goal of an episode is the text of its first observation
        return CUATask(f"browsergym/{name}", task_id, goal, "medium", name, self.max_steps, OwnScore())
