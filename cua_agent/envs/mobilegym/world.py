"""`env=mobilegym`: a MobileGym server that runs already, and the user's checkout of MobileGym on PYTHONPATH."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import httpx
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.own_score import OwnScore
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.envs.web import find_browser
from cua_agent.error_text import first_line
from cua_agent.options import STRICT, Name, PathText, without_user
from cua_agent.proxies import proxy_options
from cua_agent.tasks import CUATask, Difficulty, EvalSplit

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(without_user)]
_CHECK_S = 10.0
_DIFFICULTIES: dict[str, Difficulty] = {"L1": "easy", "L2": "medium", "L3": "hard", "L4": "hard"}


@dataclass(frozen=True, config=STRICT)
class MobileGymWorld:
    """MobileGym's phone in the browser, its tasks and its judge."""

    PRACTICAL = frozenset({"url", "browser_path"})

    url: Url = Field(default="http://127.0.0.1:4173", description="address of the MobileGym server")
    browser_path: PathText = Field(default="/usr/bin/chromium-headless-shell", description="the browser's executable")
    suites: tuple[Name, ...] = Field(default=(), description="suites of tasks to train on; empty: all")
    held_out: tuple[Name, ...] = Field(default=(), description="suites that are evaluated as unseen templates only")
    delay_s: float = Field(default=0.8, ge=0, le=30, description="from an action to the screenshot after it")
    max_steps: int = Field(default=30, ge=1, description="turns of an episode whose task has no limit of its own")

    def check(self) -> None:
        """Raise `WorldUnavailable` when the checkout, the browser, a suite or the server is missing."""
        self.training_tasks()
        find_browser(self.browser_path)
        try:
            # Its gateway has a certificate of its own making, which the browser does not look at either.
            with httpx.Client(timeout=_CHECK_S, verify=False, **proxy_options([self.url])) as client:
                client.get(self.url).raise_for_status()
        except httpx.HTTPError as error:
            raise WorldUnavailable(
                f"env=mobilegym: no server answers at {self.url}: {first_line(error)[:160]}"
            ) from error

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """An environment is a browser of its own with the phone in it."""
        self.check()
        from cua_agent.envs.mobilegym.environment import MobileGymEnvironment

        yield partial(MobileGymEnvironment.open, self.url, find_browser(self.browser_path), self.delay_s)

    def training_tasks(self) -> list[CUATask]:
        """The tasks of `suites`, a category each, without those that are held out."""
        return self._tasks(self.suites or None)

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same ones on other seeds, which draw other parameters, or those of `held_out`."""
        return self.training_tasks() if split == "seeds" else self._tasks(self.held_out)

    def _tasks(self, suites: Iterable[str] | None) -> list[CUATask]:
        if importlib.util.find_spec("bench_env") is None:
            raise WorldUnavailable("env=mobilegym needs MobileGym's own bench_env: put its checkout on PYTHONPATH")
        from bench_env.task.registry import TaskRegistry

        registry = TaskRegistry()
        known = registry.list_suites(include_generated=False)
        if unknown := [name for name in (*self.suites, *self.held_out) if name not in known]:
            raise WorldUnavailable(f"env.args: MobileGym has no suite {unknown[0]!r}; allowed: {', '.join(known)}")
        chosen = [name for name in known if name not in self.held_out] if suites is None else suites
        return [
            self._task(registry, suite, name) for suite in dict.fromkeys(chosen) for name in registry.list_tasks(suite)
        ]

    def _task(self, registry: Any, suite: str, name: str) -> CUATask:
        kind = registry.get(suite, name)
        full, limit = f"{suite}.{name}", kind.max_steps or self.max_steps
        goal = kind().description.strip() or full
        return CUATask(
            f"mobilegym/{full}", full, goal, _DIFFICULTIES.get(kind.difficulty, "hard"), suite, limit, OwnScore()
        )
