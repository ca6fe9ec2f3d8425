"""Record demonstrations of the scripted MiniWoB++ experts in real Chromium, for behaviour cloning.

    python scripts/record_miniwob_demos.py --episodes 400 --out demos.npz

Only solved episodes are kept; seeds are those reserved for cloning. Layout of the .npz file (E episodes, S steps,
F screenshots): `episode_task`, `episode_goal` [E] str, `episode_seed` [E] int64; `step_episode` [S] int64,
`step_action` [S] str (the tool call), `step_text` [S] str (what the environment said before the action, mostly empty),
`step_frame` [S] int64 (the screenshot before the action); `frame_png` uint8 (all PNG files end to end), `frame_end`
[F] int64 (where each ends). `read_frame` decodes one screenshot.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER, MiniWobBrowser
from cua_agent.envs.miniwob.environment import MiniWobEnvironment
from cua_agent.envs.miniwob.experts import Episode
from cua_agent.envs.miniwob.oracle import EXPERTS, ground
from cua_agent.envs.miniwob.tasks import eval_tasks, training_tasks
from cua_agent.parsing import render_tool_call
from cua_agent.tasks import CUATask, seed_for

DEFAULT_TASKS = (
    "click-test,click-test-2,click-button,click-dialog,click-link,click-tab,focus-text,click-option,click-checkboxes,"
    "enter-text"
)


@dataclass
class Demonstration:
    """One solved episode: per step the screenshot (PNG) and text that the agent sees, and the action's text."""

    task: str
    seed: int
    goal: str
    pngs: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


async def demonstrate(environment: MiniWobEnvironment, task: CUATask, seed: int) -> Demonstration | None:
    """The expert's episode, or None when it did not solve the page."""
    observation = await environment.reset(task, seed)
    demonstration = Demonstration(task.category, seed, goal=observation.text)
    text = ""
    try:
        async for action in EXPERTS[task.category](Episode(environment, demonstration.goal)):
            demonstration.pngs.append(_png(observation.screenshot))
            demonstration.texts.append(text)
            demonstration.actions.append(render_tool_call(action))
            result = await environment.step(await ground(environment, action))
            observation, text = result.observation, result.observation.text
            if result.done:
                break
    except ValueError:  # the element is out of sight, under another one for example
        return None
    return demonstration if await environment.compute_reward() == 1.0 else None


async def record(tasks: list[CUATask], episodes: int, browser_path: str, pages: int) -> list[Demonstration]:
    """`episodes` attempts at every task, on `pages` pages at a time; ordered by task and seed."""
    jobs = deque((task, seed_for("clone", i)) for i in range(episodes) for task in tasks)
    total, started = len(jobs), time.monotonic()
    solved: list[Demonstration] = []
    unsolved: Counter[str] = Counter()

    async def work(environment: MiniWobEnvironment) -> None:
        while jobs:
            task, seed = jobs.popleft()
            try:
                demonstration = await demonstrate(environment, task, seed)
            except EnvironmentFailure as failure:
                print(f"{task.id} seed {seed}: {failure}, again", file=sys.stderr)
                jobs.append((task, seed))
                continue
            if demonstration is None:
                unsolved[task.category] += 1
            else:
                solved.append(demonstration)
            if (total - len(jobs)) % 100 == 0:
                print(f"{total - len(jobs)}/{total} after {time.monotonic() - started:.0f} s", file=sys.stderr)

    async with MiniWobBrowser(browser_path) as browser:
        await asyncio.gather(*[work(await MiniWobEnvironment.open(browser)) for _ in range(pages)])
    print(f"solved {len(solved)} of {total}; unsolved: {dict(unsolved)}")
    order = {task.category: i for i, task in enumerate(tasks)}
    return sorted(solved, key=lambda d: (order[d.task], d.seed))


def save(demonstrations: list[Demonstration], path: Path) -> None:
    """Write the layout that the module's docstring describes."""
    pngs = [png for d in demonstrations for png in d.pngs]
    steps = [
        (i, text, action) for i, d in enumerate(demonstrations) for text, action in zip(d.texts, d.actions, strict=True)
    ]
    np.savez(
        path,
        episode_task=np.array([d.task for d in demonstrations]),
        episode_goal=np.array([d.goal for d in demonstrations]),
        episode_seed=np.array([d.seed for d in demonstrations], dtype=np.int64),
        step_episode=np.array([episode for episode, _, _ in steps], dtype=np.int64),
        step_text=np.array([text for _, text, _ in steps]),
        step_action=np.array([action for _, _, action in steps]),
        step_frame=np.arange(len(steps), dtype=np.int64),
        frame_png=np.frombuffer(b"".join(pngs), dtype=np.uint8),
        frame_end=np.cumsum([len(png) for png in pngs], dtype=np.int64),
    )


def read_frame(arrays: Mapping[str, np.ndarray], index: int) -> np.ndarray:
    """Screenshot `index` of a loaded file (read its arrays into a dict once), uint8 [H, W, 3]."""
    start = 0 if index == 0 else int(arrays["frame_end"][index - 1])
    data = arrays["frame_png"][start : int(arrays["frame_end"][index])].tobytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _png(screenshot: Image.Image) -> bytes:
    buffer = io.BytesIO()
    screenshot.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    known = {task.category: task for task in training_tasks() + eval_tasks("templates") if task.category in EXPERTS}
    parser = argparse.ArgumentParser(description="Record demonstrations of the MiniWoB++ experts.")
    parser.add_argument("--tasks", default=DEFAULT_TASKS, help="comma-separated page names")
    parser.add_argument("--episodes", type=int, default=400, help="attempts per task")
    parser.add_argument("--pages", type=int, default=4, help="pages at a time")
    parser.add_argument("--browser-path", default=DEFAULT_BROWSER)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = options.tasks.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--tasks: no expert for {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    save(
        asyncio.run(record([known[n] for n in names], options.episodes, options.browser_path, options.pages)),
        options.out,
    )


if __name__ == "__main__":
    main()
