"""`env=browsergym`: BrowserGym's tasks played with our actions, each environment in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("browsergym.miniwob")
pytest.importorskip("miniwob")

from cua_agent.acting import act
from cua_agent.actions import Action, PressKey, ReportTaskComplete, Tap, Target, TypeText, Wait
from cua_agent.envs.base import Environment, EnvironmentFailure, WorldUnavailable
from cua_agent.envs.browsergym.suites import NoSuite, import_suite
from cua_agent.envs.browsergym.world import BrowserGymWorld
from cua_agent.envs.miniwob.oracle import ground
from cua_agent.envs.registry import make_world, open_world
from cua_agent.envs.web.browser import DEFAULT_BROWSER
from cua_agent.options import ConfigError
from tests.miniwob_rig import TASKS, environments

ROOT = Path(__file__).parents[1]
SUITE = "tests.browsergym_suite:browsergym/test"
needs_browser = pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason="no browser: run `make browser`")


def world(*ids: str, **options: Any) -> BrowserGymWorld:
    made = make_world("browsergym", {"ids": list(ids), "settle_s": 0.1, **options})
    assert isinstance(made, BrowserGymWorld)
    return made


@contextlib.asynccontextmanager
async def opened(made: BrowserGymWorld, timeout_s: float = 300.0) -> AsyncIterator[Environment]:
    async with open_world(made, timeout_s) as factory:
        environment = await factory()
        try:
            yield environment
        finally:
            await environment.close()


# Without a browser.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": []}, "env.args.ids=[]"),
        ({"ids": ["miniwob.click-test"]}, "env.args.ids=miniwob.click-test: must match"),
        ({"viewport": [160]}, "env.args.viewport"),
        ({"scale": 0}, "env.args.scale=0: must be greater than 0"),
        ({"helt_out": []}, "env.args.helt_out=[]: unknown key; did you mean env.args.held_out?"),
    ],
)
def test_options_that_are_wrong_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        make_world("browsergym", options)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_suite_that_is_not_installed_is_named_with_what_it_needs() -> None:
    with pytest.raises(NoSuite) as refusal:
        import_suite("browsergym/webarena.310")
    assert str(refusal.value) == (
        "browsergym/webarena.310 needs the package browsergym-webarena (there is no module browsergym.webarena), and "
        "servers of its own: see its README"
    )
    with pytest.raises(NoSuite, match=r"browsergym.miniwob has no such task, 125 others"):
        import_suite("browsergym/miniwob.click-tset")
    with pytest.raises(NoSuite, match="no module nowhere"):
        import_suite("nowhere:browsergym/some.task")


@needs_browser
def test_what_is_missing_is_asked_first() -> None:
    world("browsergym/miniwob.click-test", held_out=["browsergym/openended"]).check()
    with pytest.raises(WorldUnavailable, match=r"^env\.args\.ids: browsergym/workarena.* needs the package"):
        world("browsergym/miniwob.click-test", held_out=["browsergym/workarena.servicenow.all-menu"]).check()
    with pytest.raises(WorldUnavailable, match="/no/browser"):
        world("browsergym/miniwob.click-test", browser_path="/no/browser").check()


def test_tasks_are_selected_by_what_follows_browsergym() -> None:
    [task] = world("browsergym/miniwob.click-test", max_steps=4).training_tasks()
    assert (task.id, task.category, task.max_steps) == ("browsergym/miniwob.click-test", "miniwob.click-test", 4)
    assert world("browsergym/miniwob.click-test").eval_tasks("templates") == []


# In a browser.

SCRIPTS: dict[str, Sequence[Action]] = {
    "click-test": [Tap(Target("Click Me!"))],
    "click-test-2": [Tap(Target("TWO"))],
    "click-button-sequence": [Tap(Target("ONE")), Tap(Target("TWO"))],
    "click-dialog": [Tap(Target("Close"))],
    "focus-text": [Tap(Target("textbox"))],
    "click-option": [Tap(Target("1st radio")), Tap(Target("Submit"))],
    "click-checkboxes": [Tap(Target("1st checkbox")), Tap(Target("Submit"))],
    "enter-text": [TypeText("Ann", Target("textbox")), Tap(Target("Submit"))],
    "enter-password": [
        TypeText("x", Target("Password")),
        TypeText("x", Target("Verify password")),
        Tap(Target("Submit")),
    ],
    "click-tab": [Tap(Target("Tab #1"))],
    "click-collapsible": [Tap(Target("Submit"))],
    "simple-arithmetic": [TypeText("7", Target("textbox")), PressKey("Tab"), Tap(Target("Submit"))],
}
"""What is done, right or wrong, on pages that both worlds have."""
SEEDS = (1, 2, 3)


def verdict(results: Sequence[Any], score: float) -> tuple[list[tuple[str | None, bool]], float]:
    return [(result.error, result.done) for result in results], score


async def follow(environment: Any, script: Sequence[Action]) -> tuple[list[tuple[str | None, bool]], float]:
    results = []
    for action in script:
        results.append(await environment.step(await ground(environment, action)))
        if results[-1].done:
            break
    return verdict(results, await environment.compute_reward())


def their_seed(seed: int) -> Any:
    """What BrowserGym gives `Math.seedrandom` for a seed: a number, which that library tells from a text by a zero."""
    return f"{np.random.RandomState(seed).randint(0, 1000000)}\0"


@pytest.mark.slow
@needs_browser
def test_rewards_agree_with_those_of_our_own_miniwob() -> None:
    """Same page, same seed, same actions: the same answers, end and reward. BrowserGym calls every reward above 0 a
    success, ours tells how much of one it is."""

    async def ours() -> dict[tuple[str, int], Any]:
        async with environments() as [page]:
            return {
                (name, seed): ((await page.reset(TASKS[name], their_seed(seed))).text, *(await follow(page, script)))
                for name, script in SCRIPTS.items()
                for seed in SEEDS
            }

    async def theirs() -> dict[tuple[str, int], Any]:
        made = world(*(f"browsergym/miniwob.{name}" for name in SCRIPTS), viewport=[160, 210], scale=1)
        async with opened(made) as page:
            return {
                (task.category.removeprefix("miniwob."), seed): (
                    (await page.reset(task, seed)).text,
                    *(await follow(page, SCRIPTS[task.category.removeprefix("miniwob.")])),
                )
                for task in made.training_tasks()
                for seed in SEEDS
            }

    ours_seen, theirs_seen = asyncio.run(ours()), asyncio.run(theirs())
    rewards = set()
    for case, (goal, answers, reward) in ours_seen.items():
        assert theirs_seen[case] == (goal, answers, float(reward > 0)), case
        rewards.add((reward, answers[-1][1]))
    assert rewards >= {(1.0, True), (0.0, True)}, "the scripts are never right, or never wrong"


OTHERS = (
    *("ascending-numbers", "book-flight", "choose-date", "choose-list", "click-color", "click-menu", "click-pie"),
    *("click-scroll-list", "click-shades", "copy-paste", "count-shape", "drag-cube", "email-inbox", "find-greatest"),
    *("guess-number", "hot-cold", "phone-book", "social-media", "terminal", "tic-tac-toe", "use-slider"),
)


@pytest.mark.slow
@needs_browser
def test_other_tasks_are_played_without_an_error() -> None:
    async def play() -> list[tuple[str, Any]]:
        made = world(*(f"browsergym/miniwob.{name}" for name in OTHERS))
        seen = []
        async with opened(made) as page:
            for task in made.training_tasks():
                first = await page.reset(task, 5)
                assert first.screenshot.size == (498, 321) and first.text, task.id
                where = await page.locate("button") or await page.locate("textbox")
                acts = [Wait(0.1), *([Tap(where)] if where else []), PressKey("Tab")]
                results = [await page.step(action) for action in acts]
                seen.append((task.id, [r.error for r in results if not r.done] + [await page.compute_reward()]))
        return seen

    for task_id, answers in asyncio.run(play()):
        assert answers[:-1] == [None] * (len(answers) - 1), task_id
        assert answers[-1] in (0.0, 1.0), task_id


@pytest.mark.slow
@needs_browser
def test_forms_in_frames_and_answers_count() -> None:
    async def play(*turns: Action) -> float:
        made = world(f"{SUITE}.frame", viewport=[400, 300])
        async with opened(made) as page:
            seen = await page.reset(made.training_tasks()[0], 0)
            assert seen.screenshot.size == (400, 300)
            for turn in turns:
                effect = await act(page, turn, seen, "target")
                assert effect.observation.text == "", effect
                seen = effect.observation
            return await page.compute_reward()

    saved = [TypeText("Paris", Target("City")), Tap(Target("Save"))]
    assert asyncio.run(play(*saved, ReportTaskComplete("5"))) == 1.0
    assert asyncio.run(play(*saved, ReportTaskComplete("6"))) == 0.5
    assert asyncio.run(play(*saved)) == 0.0


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hangs", "no end within"),
        ("script", "no end within"),
        ("dies", "the process of the environment is dead"),
        ("raises", "RuntimeError: no verdict"),
    ],
)
def test_trouble_costs_the_episode_and_leaves_no_process(kind: str, words: str) -> None:
    """A validator that hangs, a page that hangs, a process that dies, a task that raises."""

    async def play() -> list[psutil.Process]:
        made = world(f"{SUITE}.{kind}")
        async with open_world(made, 60.0 if kind in ("dies", "raises") else 30.0) as factory:
            page = await factory()
            await page.reset(made.training_tasks()[0], 0)
            below = psutil.Process().children(recursive=True)
            with pytest.raises(EnvironmentFailure, match=words):
                await page.step(Wait(0.0))
            await page.close()
            return below

    below = asyncio.run(play())
    assert len(below) >= 3, "the process, Playwright's and the browser"
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []


@pytest.mark.slow
@needs_browser
def test_the_processes_end_with_ours() -> None:
    """Also when it is killed: they hear that nobody calls any more."""
    program = (
        "import time; from cua_agent.envs.browsergym.environment import BrowserGymEnvironment\n"
        "from cua_agent.envs.browsergym.settings import Settings\n"
        "from tests.test_browsergym import world\n"
        "made, settings = world('browsergym/miniwob.click-test'), Settings('/usr/bin/chromium-headless-shell')\n"
        "page = BrowserGymEnvironment(settings); page.reset(made.training_tasks()[0], 0); print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []


@pytest.mark.slow
@needs_browser
def test_the_built_in_model_trains_on_it(tmp_path: Path) -> None:
    words = [
        *("env=browsergym", "env.args.viewport=[160,210]", "env.args.scale=1", "env.args.settle_s=0.05"),
        *("env.args.ids=[browsergym/miniwob.click-button]", "experiment=quick", "max_steps=1", "rollout.concurrency=2"),
        *("rollout.groups_per_step=1", "rollout.group_size=4", "rollout.max_turns=2", "eval.baseline=false"),
        *("eval.episodes=2", "run_name=run", f"output_dir={tmp_path}"),
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *words], capture_output=True, text=True, timeout=550, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
