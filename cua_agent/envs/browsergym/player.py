"""Episodes of BrowserGym, in a process of their own: its Playwright is the synchronous one, of one thread."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import gymnasium
from browsergym.core import _set_global_playwright
from browsergym.core.observation import extract_screenshot
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from cua_agent.actions import Action, Point
from cua_agent.envs.base import Observation, StepResult
from cua_agent.envs.browsergym import pages
from cua_agent.envs.browsergym.one_browser import OneBrowser
from cua_agent.envs.browsergym.settings import Settings
from cua_agent.envs.browsergym.suites import import_suite
from cua_agent.envs.web.gestures import ActionRefused
from cua_agent.error_text import first_line

EPISODE_OVER = "the episode is over"


class Player:
    """Plays one task after the other in one browser. Actions are mouse and keyboard events at pixels; the screenshot,
    the end of an episode and its rewards are BrowserGym's."""

    def __init__(self, settings: Settings) -> None:
        logging.getLogger("browsergym").setLevel(logging.ERROR)  # it warns of every option that is not the task's own
        self._settings = settings
        self._playwright = sync_playwright().start()
        _set_global_playwright(OneBrowser(self._playwright))  # type: ignore[arg-type]
        self._task_id = ""
        self._env: Any = None
        self._sum = 0.0
        self._over = False

    def reset(self, task_id: str, seed: int) -> Observation:
        """The start of a task; the text is its goal."""
        if task_id != self._task_id:
            self._leave()
            import_suite(task_id)
            self._env = gymnasium.make(task_id, disable_env_checker=True, **self._options()).unwrapped
            self._task_id = task_id
        seen, _ = self._env.reset(seed=seed)
        self._sum, self._over = 0.0, False
        texts = [part["text"] for part in seen["goal_object"] if part["type"] == "text"]
        return Observation(self._screenshot(), "\n".join(texts))

    def step(self, action: Action) -> StepResult:
        """What the page refuses, or breaks off, the agent is told."""
        error = EPISODE_OVER if self._over else None
        if not self._over:
            info, *_ = self._env.pre_step()
            try:
                pages.perform_now(self._env.page, action)
            except ActionRefused as refusal:
                error = str(refusal)
            except PlaywrightError as trouble:
                error = first_line(trouble)
            self._count(self._env.post_step(info))
        return StepResult(Observation(self._screenshot(), error or ""), self._over, error)

    def report(self, message: str) -> None:
        """The agent's last word is a message in BrowserGym's chat, where some tasks look for the answer."""
        if not self._over:
            info, say, _ = self._env.pre_step()
            say(message)
            self._count(self._env.post_step(info))

    def locate(self, target: str) -> Point | None:
        return pages.locate(self._env.page, target)

    def score(self) -> float:
        """The sum of the rewards, within 0..1."""
        return min(max(self._sum, 0.0), 1.0)

    def close(self) -> None:
        self._leave()
        self._playwright.stop()

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        viewport = settings.viewport and dict(zip(("width", "height"), settings.viewport, strict=True))
        return {
            "use_raw_page_output": True,  # the page's tree takes longer than all the rest, and nobody looks at it
            "pw_chromium_kwargs": {"executable_path": settings.browser_path},
            "slow_mo": 0,
            "pre_observation_delay": settings.settle_s,
            "viewport": viewport,
            "task_kwargs": dict(settings.task_kwargs),
        }

    def _count(self, outcome: tuple[Any, float, bool, bool, Any]) -> None:
        _, reward, terminated, truncated, _ = outcome
        self._sum += float(reward)
        self._over = bool(terminated or truncated)

    def _screenshot(self) -> Image.Image:
        page = self._env.page
        if self._settings.scale is not None:
            page._bgym_scale_factor = self._settings.scale  # where BrowserGym's tasks put it
        return Image.fromarray(extract_screenshot(page))

    def _leave(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env, self._task_id = None, ""


def use_installed_miniwob() -> None:
    """Let BrowserGym find the pages of the package `miniwob`, unless `MINIWOB_URL` says where they are."""
    from importlib.util import find_spec

    spec = find_spec("miniwob")
    if spec is not None and spec.origin is not None:
        os.environ.setdefault("MINIWOB_URL", (Path(spec.origin).parent / "html" / "miniwob").as_uri() + "/")
