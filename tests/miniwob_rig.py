"""Pages of MiniWoB++ in real Chromium, for tests."""

import asyncio
import contextlib
import shutil
from collections import deque

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("PIL")

from cua_agent.actions import Tap
from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER, MiniWobBrowser
from cua_agent.envs.miniwob.environment import MiniWobEnvironment
from cua_agent.envs.miniwob.tasks import eval_tasks, training_tasks

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason=f"no {DEFAULT_BROWSER}: run `make browser`"),
]

TASKS = {task.category: task for task in training_tasks() + eval_tasks("templates")}
HIDDEN = ("reward-display", "click-canvas", "sync-task-cover")
PAGES = 4


@contextlib.asynccontextmanager
async def environments(count=1, **options):
    async with MiniWobBrowser(**options) as browser:
        yield [await MiniWobEnvironment.open(browser) for _ in range(count)]


def pixels(observation):
    return np.asarray(observation.screenshot)


async def tap(environment, name):
    point = await environment.locate(name)
    assert point is not None, f"{name!r} is not on the screen"
    return await environment.step(Tap(point))


async def share(jobs, count, work, **options):
    """Run `work(environment, job)` for every job on `count` pages of one new browser."""
    queue = deque(jobs)

    async def worker(environment):
        while queue:
            await work(environment, queue.popleft())

    async with environments(count, **options) as pages:
        await asyncio.gather(*[worker(page) for page in pages])
