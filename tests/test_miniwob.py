"""MiniWoB++ in real Chromium: same seed same start, no reward leaks, no clock traps."""

import asyncio

import pytest

pytest.importorskip("playwright")
pytest.importorskip("PIL")

from cua_agent.actions import Direction, Drag, Point, Scroll, Tap, TypeText, Wait
from cua_agent.envs.miniwob.environment import EPISODE_OVER
from tests.miniwob_rig import HIDDEN, PAGES, TASKS, environments, needs_browser, pixels, share, tap

pytestmark = needs_browser

# Reset ----------------------------------------------------------------------------------------------------------------


def test_every_task_starts_with_a_goal_and_the_same_picture_for_the_same_seed():
    first, second = {}, {}

    def keep(store):
        async def work(environment, job):
            name, seed = job
            observation = await environment.reset(TASKS[name], seed)
            store[job] = observation.text, pixels(observation)

        return work

    asyncio.run(share([(name, seed) for name in TASKS for seed in (7, 8)], PAGES, keep(first)))
    asyncio.run(share([(name, 7) for name in reversed(TASKS)], PAGES - 1, keep(second)))  # another launch and order
    for name in TASKS:
        goal, picture = first[name, 7]
        assert picture.shape == (210, 160, 3)
        assert goal.strip()
        assert goal == " ".join(goal.split())
        assert (picture[50:] != 255).any(), f"{name}: nothing below the goal"
        assert goal == second[name, 7][0]
        assert (picture == second[name, 7][1]).all(), f"{name}: another launch draws seed 7 otherwise"
        assert (picture != first[name, 8][1]).any(), f"{name}: seeds 7 and 8 look the same"


def test_nothing_of_an_episode_survives_reset():
    async def run():
        async with environments() as [page]:
            for name, spoil in (("scroll-text", "#text-area"), ("enter-text", "#tt"), ("click-tab", "#area a")):
                clean = await page.reset(TASKS[name], 3)
                await page.probe(f"document.querySelector('{spoil}').focus()")
                await page.step(TypeText("left over"))
                await page.step(Scroll(Direction.DOWN, Point(300, 400)))
                await page.step(Drag(Point(200, 400), Point(600, 600)))
                assert (pixels(await page.reset(TASKS[name], 3)) == pixels(clean)).all(), name

    asyncio.run(run())


def test_scale_enlarges_the_screenshot():
    async def run():
        async with environments(scale=2) as [page]:
            observation = await page.reset(TASKS["click-test"], 0)
            assert observation.screenshot.size == (320, 420)
            assert (await tap(page, "Click Me!")).done
            assert await page.compute_reward() == 1.0

    asyncio.run(run())


# Reward leaks ---------------------------------------------------------------------------------------------------------


def test_reward_panel_is_never_visible():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["click-test"], 0)
            ended = (await tap(page, "Click Me!")).observation
            await page.probe("core.updateDisplay(-1)")
            for corner in ("165, 0", "165, 400", "0, 400"):
                await page.probe(f"window.scrollTo({corner})")
                shot = (await page.step(Wait(0))).observation
                assert (pixels(shot) == pixels(ended)).all(), f"scrolling to {corner} shows something"
            boxes = f"{list(HIDDEN)}.map(id => document.getElementById(id).getClientRects().length).join()"
            assert await page.probe(boxes) == "0,0,0"
            # The same page without our style sheet does show them: the comparison above can fail.
            await page.probe("document.head.lastElementChild.remove(), window.scrollTo(165, 0)")
            assert await page.probe(boxes) == "1,1,1"
            assert (pixels((await page.step(Wait(0))).observation) != pixels(ended)).any()

    asyncio.run(run())


def test_reward_is_the_verdict_and_zero_before_it():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["click-test-2"], 1)
            assert await page.compute_reward() == 0.0
            result = await page.step(Tap(Point(0, 999)))  # empty corner
            assert not result.done
            assert await page.compute_reward() == 0.0
            assert (await tap(page, "TWO")).done
            assert await page.probe("WOB_RAW_REWARD_GLOBAL") == "-1"
            assert await page.compute_reward() == 0.0

    asyncio.run(run())


def test_partial_verdict_is_passed_on():
    async def run():
        async with environments() as [page]:
            goal = (await page.reset(TASKS["click-checkboxes"], 0)).text
            assert goal == "Select ZrLIee, RKPgD, 3mJ5 and click Submit."  # 3 of the 5 boxes
            await tap(page, "ZrLIee")
            await tap(page, "RKPgD")
            assert (await tap(page, "Submit")).done
            assert await page.compute_reward() == pytest.approx((4 - 1) / 5)

    asyncio.run(run())


def test_an_ended_episode_stays_ended():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["click-test"], 0)
            assert (await tap(page, "Click Me!")).done
            result = await page.step(Tap(Point(500, 500)))  # here lies MiniWoB++'s invisible START cover
            assert (result.done, result.error, result.observation.text) == (True, EPISODE_OVER, EPISODE_OVER)
            assert await page.probe("`${WOB_DONE_GLOBAL} ${WOB_RAW_REWARD_GLOBAL}`") == "true 1"
            await page._page.page.mouse.click(80, 105)  # even a click that gets through starts nothing
            assert await page.probe("WOB_DONE_GLOBAL") == "true"

    asyncio.run(run())


# Clock traps ----------------------------------------------------------------------------------------------------------


def test_time_neither_ends_an_episode_nor_lowers_its_reward():
    async def run():
        async with environments() as [page]:
            clock = page._page.page.clock
            await clock.install()
            await page.reset(TASKS["click-test"], 0)
            await clock.fast_forward("03:00:00")
            assert not (await page.step(Wait(0))).done
            assert (await tap(page, "Click Me!")).done
            assert await page.compute_reward() == 1.0
            assert float(await page.probe("WOB_REWARD_GLOBAL")) == pytest.approx(1 - 3 / 24, abs=1e-3)
            # With MiniWoB++'s own limit the same clock does end the episode.
            await page.probe("core.EPISODE_MAX_TIME = 10000, core.startEpisodeReal()")
            await clock.fast_forward("00:11")
            assert await page.probe("`${WOB_DONE_GLOBAL} ${WOB_REWARD_REASON}`") == "true timed out"

    asyncio.run(run())


def test_nothing_moves_by_itself():
    """A focused field's caret does not blink and an opening section does not slide."""

    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["click-collapsible"], 0)
            before = pixels((await page.step(Wait(0))).observation)
            at_once = pixels((await tap(page, "Section #40")).observation)
            assert (before != at_once).any()
            assert (pixels((await page.step(Wait(0.6))).observation) == at_once).all()
            await page.reset(TASKS["enter-text"], 0)
            focused = pixels((await tap(page, "textbox")).observation)
            assert (pixels((await page.step(Wait(0.6))).observation) == focused).all()

    asyncio.run(run())
