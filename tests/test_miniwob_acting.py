"""MiniWoB++ in real Chromium: actions, experts, grounding, pages side by side, failures."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile

import pytest

pytest.importorskip("playwright")
pytest.importorskip("PIL")

from cua_agent.actions import Button, Direction, Drag, Point, PressButton, PressKey, Scroll, Tap, TypeText, Wait
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.miniwob.browser import BrowserMissing, MiniWobBrowser
from cua_agent.envs.miniwob.environment import MiniWobEnvironment
from cua_agent.envs.miniwob.experts import Episode
from cua_agent.envs.miniwob.oracle import EXPERTS, ground
from cua_agent.tasks import seed_for
from tests.miniwob_rig import PAGES, TASKS, environments, needs_browser, pixels, share, tap

pytestmark = needs_browser

UNKNOWN_KEY = (
    "unknown key 'entre'; allowed: enter, tab, escape, backspace, delete, insert, home, end, pageup, pagedown, space, "
    "arrowup, arrowdown, arrowleft, arrowright, control, shift, alt, meta, f1 to f12, characters"
)

# Actions --------------------------------------------------------------------------------------------------------------


def test_random_actions_do_not_leave_the_page():
    keys = ("f5", "alt+left", "control+r", "control+w", "control+t", "backspace", "tab", "enter", "end", "control+end")

    async def run():
        async with environments() as [page]:
            for name in ("search-engine", "click-tab", "multi-layouts"):
                dice = random.Random(name)

                def anywhere(dice=dice):
                    return Point(dice.randint(0, 1000), dice.randint(0, 1000))

                await page.reset(TASKS[name], 5)
                url = page._page.page.url
                for _ in range(25):
                    action = dice.choice(
                        [
                            Tap(anywhere()),
                            Drag(anywhere(), anywhere()),
                            TypeText("abc", anywhere(), press_enter=True),
                            PressKey(dice.choice(keys)),
                            Scroll(dice.choice(list(Direction)), anywhere()),
                        ]
                    )
                    await page.step(action)
                    assert page._page.page.url.split("#")[0] == url
                    assert len(page._page.context.pages) == 1

    asyncio.run(run())


def test_refused_actions_answer_with_an_error_and_change_nothing():
    async def run():
        async with environments() as [page]:
            start = await page.reset(TASKS["enter-text"], 0)
            for action, error in (
                (PressButton(Button.HOME), "a web page has no home button"),
                (TypeText("abc"), "no text field is focused"),
                (PressKey("entre"), UNKNOWN_KEY),
            ):
                result = await page.step(action)
                assert (result.error, result.observation.text, result.done) == (error, error, False)
                assert (pixels(result.observation) == pixels(start)).all()

    asyncio.run(run())


def test_typing_and_keys_reach_the_field():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["enter-text"], 0)
            box = await page.locate("textbox")
            for text, held in (
                ("first", "first"),
                ("second", "second"),
                ("  two  spaces\t", "  two  spaces\t"),
                ("x" * 2000, "x" * 2000),
            ):
                assert (await page.step(TypeText(text, box))).error is None
                assert await page.probe("document.querySelector('#tt').value") == held
            for text in ("a\nb", "x" * 300 + "\n", "x" * 2001, "a\ud800b"):
                assert str((await page.step(TypeText(text))).error).startswith("nothing was typed: ")
                assert await page.probe("document.querySelector('#tt').value") == "x" * 2000
            await page.probe("document.querySelector('#tt').maxLength = 3")
            result = await page.step(TypeText("abcd"))
            assert result.error == "the field did not take the text as it is; it holds 'abc'"
            await page.step(TypeText("abc"))  # still focused
            await page.step(PressKey("home"))
            await page.step(PressKey("delete"))
            assert await page.probe("document.querySelector('#tt').value") == "bc"

    asyncio.run(run())


@pytest.mark.parametrize("words", [2, 50])
def test_line_breaks_and_tabs_are_typed_where_there_are_lines(words: int):
    text = "first line\n\n  second line\twith a tab " * words

    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["scroll-text"], 0)
            area = await page.locate("textarea")
            assert (await page.step(TypeText(text, area))).error is None
            assert await page.probe("document.querySelector('#text-area').value") == text

    asyncio.run(run())


def test_scrolling_moves_what_lies_under_the_pointer():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["scroll-text"], 0)
            top = "document.querySelector('#text-area').scrollTop"
            area = await page.locate("textarea")
            await page.step(Scroll(Direction.DOWN, area))
            assert float(await page.probe(top)) == 105.0
            await page.step(Scroll(Direction.UP, area))
            assert float(await page.probe(top)) == 0.0

    asyncio.run(run())


# Experts and grounding ------------------------------------------------------------------------------------------------


def test_experts_solve_their_tasks_within_the_turns():
    solved = dict.fromkeys(EXPERTS, 0)

    async def work(environment, job):
        name, seed = job
        observation = await environment.reset(TASKS[name], seed)
        turns = 0
        async for action in EXPERTS[name](Episode(environment, observation.text)):
            turns += 1
            if (await environment.step(await ground(environment, action))).done:
                break
        if await environment.compute_reward() == 1.0 and turns < TASKS[name].max_steps:
            solved[name] += 1

    seeds = [seed_for("eval", index) for index in range(2)]
    asyncio.run(share([(name, seed) for name in EXPERTS for seed in seeds], PAGES, work))
    assert len(EXPERTS) >= 20
    assert {name: count for name, count in solved.items() if count < len(seeds)} == {}


def test_locate_finds_visible_names():
    # page, name -> id of the element that a tap there must reach
    expected = {
        ("login-user", "Username"): "username",
        ("login-user", " pass  word ".replace("  ", "")): "password",
        ("login-user", "Login"): "subbtn",
        ("login-user", "textbox"): "username",
        ("login-user", "textbox 2"): "password",
        ("focus-text-2", "3rd textbox"): "tt3",
        ("enter-password", "Verify password"): "verify",
        ("use-autocomplete-nodelay", "Tags"): "tags",
        ("scroll-text", "textarea"): "text-area",
        ("click-option", "radio 2"): "ch1",
    }

    async def run():
        async with environments() as [page]:
            for (name, target), wanted in expected.items():
                await page.reset(TASKS[name], 0)
                point = await page.locate(target)
                assert point is not None, (name, target)
                x, y = point.to_pixels(160, 210)
                assert await page.probe(f"document.elementFromPoint({x}, {y}).id") == wanted, (name, target)

    asyncio.run(run())


def test_locate_refuses_what_is_not_on_the_screen():
    async def run():
        async with environments() as [page]:
            goal = (await page.reset(TASKS["enter-text"], 0)).text
            for unknown in (
                "Wi-Fi",
                "",
                " ",
                "Last reward:",
                "Episodes done",
                "START",
                "0",
                goal,
                "textbox 2",
                "'\"\\",
                "x" * 100_000,
            ):
                assert await page.locate(unknown) is None, unknown[:40]
            await page.reset(TASKS["click-dialog"], 0)
            assert await page.locate("Close") == await page.locate("x") is not None
            await page.reset(TASKS["scroll-text"], 0)
            await page.probe("document.querySelector('#subbtn').style.marginTop = '300px'")
            assert await page.locate("Submit") is None, "below the screen"

    asyncio.run(run())


def test_locate_points_at_the_part_that_is_not_covered():
    async def run():
        async with environments() as [page]:
            await page.reset(TASKS["click-test-2"], 0)
            place = "document.querySelector('{}').style.cssText = 'position:absolute; top:80px; left:{}px'"
            await page.probe(place.format("#subbtn", 50))
            await page.probe(place.format("#subbtn2", 50))
            assert await page.locate("ONE") is None
            await page.probe(place.format("#subbtn2", 65))
            await tap(page, "ONE")
            assert await page.compute_reward() == 1.0

    asyncio.run(run())


# Concurrency and failures ---------------------------------------------------------------------------------------------


def test_pages_do_not_disturb_each_other():
    names = ["enter-text", "login-user", "click-checkboxes", "enter-password"] * 2

    async def run():
        async def play(environment, name, seed):
            observation = await environment.reset(TASKS[name], seed)
            async for action in EXPERTS[name](Episode(environment, observation.text)):
                await environment.step(await ground(environment, action))
            return await environment.compute_reward()

        async with environments(len(names)) as pages:
            jobs = [play(page, name, seed) for seed, (page, name) in enumerate(zip(pages, names, strict=True))]
            assert await asyncio.gather(*jobs) == [1.0] * len(names)

    asyncio.run(run())


async def process_id(browser):
    session = await browser.chromium._browser.new_browser_cdp_session()
    processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
    return next(process["id"] for process in processes if process["type"] == "browser")


def test_killed_browser_costs_the_running_episodes_only():
    async def run():
        async with MiniWobBrowser() as browser:
            pages = [await MiniWobEnvironment.open(browser) for _ in range(2)]
            for page in pages:
                await page.reset(TASKS["click-test"], 0)
            running = asyncio.gather(*[page.step(Wait(1)) for page in pages], return_exceptions=True)
            await asyncio.sleep(0.2)
            os.kill(await process_id(browser), signal.SIGKILL)
            assert [type(outcome) for outcome in await running] == [EnvironmentFailure] * 2
            with pytest.raises(EnvironmentFailure, match="the page is gone"):
                await pages[0].locate("Click Me!")
            for page in [*pages, await MiniWobEnvironment.open(browser)]:  # old ones recover as well
                await page.reset(TASKS["click-test"], 0)
                assert (await tap(page, "Click Me!")).done

    asyncio.run(run())


def test_a_browsers_temporary_files_are_in_one_place_and_go_with_it(tmp_path, monkeypatch):
    async def run():
        async with MiniWobBrowser() as browser:
            await MiniWobEnvironment.open(browser)
            [scratch] = tmp_path.iterdir()
            assert any(path.name.startswith("playwright_chromiumdev_profile-") for path in scratch.iterdir())
            os.kill(await process_id(browser), signal.SIGKILL)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_program_that_is_no_browser_is_one_line():
    async def run():
        with pytest.raises(BrowserMissing) as caught:
            async with MiniWobBrowser(shutil.which("true")):
                pass
        assert "\n" not in str(caught.value)
        assert "env.args.browser_path" in str(caught.value)

    asyncio.run(run())


def test_crashed_and_hanging_pages_are_replaced():
    async def crash(environment):
        with contextlib.suppress(Exception):  # the page dies before it can answer
            await environment._page.devtools.send("Page.crash")

    async def run():
        async with MiniWobBrowser(timeout_s=4.0) as browser:
            broken, bystander = [await MiniWobEnvironment.open(browser) for _ in range(2)]
            await bystander.reset(TASKS["click-test"], 0)
            for break_it in ("crash", "hang"):
                await broken.reset(TASKS["click-test"], 0)
                with pytest.raises(EnvironmentFailure):
                    if break_it == "crash":
                        await asyncio.gather(crash(broken), broken.step(Wait(0.3)))
                    else:
                        await broken.probe("(() => { while (true); })()")
                await broken.reset(TASKS["click-test"], 0)
                assert (await tap(broken, "Click Me!")).done
            assert (await tap(bystander, "Click Me!")).done, "the browser was not restarted for it"

    asyncio.run(run())
