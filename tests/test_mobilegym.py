"""The adapter to MobileGym, with a stand-in for its Python side; the browser is a real one."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cua_agent import actions
from cua_agent.actions import Button, Direction, Point
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.mobilegym.mapping import NoMeaning, calls_of
from cua_agent.envs.mobilegym.world import MobileGymWorld
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import open_world

T = TypeVar("T")
PAGE = b"""<body style="margin: 0"><button style="width: 100px; height: 50px" onclick="liked = true">Like</button>
<input style="width: 90px"><button style="width: 100px; height: 50px" onclick="sold = 1">Sell</button>
<script>let liked = false, sold = 0; const field = document.querySelector("input");
state = () => ({os: {}, apps: {shop: {liked, sold, query: field.value}}})</script>"""
LIKE, SELL, AWAY = Point(500, 100), Point(500, 450), Point(500, 990)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def bench_env(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_ins"))
    yield
    for name in [*sys.modules]:
        if name.partition(".")[0] == "bench_env" or name == "cua_agent.envs.mobilegym.environment":
            del sys.modules[name]


def on_phone(url: str, use: Callable[[Any], Awaitable[T]], **options: Any) -> T:
    async def main() -> T:
        world = MobileGymWorld(url=url, delay_s=0.0, **options)
        async with open_world(world, 60.0) as factory, EnvironmentPool(factory, 1) as pool, pool.lend() as env:
            return await use(env)

    return asyncio.run(main())


def test_tasks_are_those_of_the_checkout(bench_env: None) -> None:
    tasks = MobileGymWorld().training_tasks()
    assert [(task.id, task.category, task.difficulty, task.max_steps) for task in tasks] == [
        ("mobilegym/broken.Unjudgeable", "broken", "medium", 30),
        ("mobilegym/shop.LikeAndSearch", "shop", "medium", 15),
    ]
    world = MobileGymWorld(held_out=("broken",))
    assert [task.category for task in world.training_tasks()] == ["shop"]
    assert [task.category for task in world.eval_tasks("templates")] == ["broken"]
    with pytest.raises(WorldUnavailable, match=r"^env\.args: MobileGym has no suite 'post'; allowed: broken, shop$"):
        MobileGymWorld(suites=("post",)).check()


def test_without_a_checkout_or_a_server_it_is_one_line(request: pytest.FixtureRequest) -> None:
    with pytest.raises(WorldUnavailable, match=r"^env=mobilegym needs MobileGym's own bench_env: put its checkout on "):
        MobileGymWorld().check()
    request.getfixturevalue("bench_env")
    with pytest.raises(WorldUnavailable, match=r"^env=mobilegym: no server answers at http://127\.0\.0\.1:1: "):
        MobileGymWorld(url="http://127.0.0.1:1", browser_path=sys.executable).check()


@pytest.mark.parametrize(
    ("action", "calls"),
    [
        (actions.Tap(LIKE), [("CLICK", {"point": [500, 100]})]),
        (actions.LongPress(LIKE, 1.5), [("LONG_PRESS", {"point": [500, 100], "duration": 1500})]),
        (
            actions.TypeText("it's", LIKE, press_enter=True),
            [("TYPE", {"value": "it's", "clear": True, "point": [500, 100]}), ("ENTER", {})],
        ),
        (actions.Scroll(Direction.DOWN), [("SWIPE", {"point1": [500, 750], "point2": [500, 250]})]),
        (actions.Scroll(Direction.UP, LIKE), [("SWIPE", {"point1": [500, 0], "point2": [500, 350]})]),
        (actions.PressKey("Return"), [("ENTER", {})]),
        (actions.PressButton(Button.APP_SWITCH), [("RECENT", {})]),
        (actions.Wait(2.0), [("WAIT", {"value": 2.0})]),
        (actions.ReportTaskComplete(), []),
    ],
)
def test_what_an_action_is_to_mobilegym(action: Any, calls: list[Any]) -> None:
    assert calls_of(action) == calls


def test_what_it_does_not_have_is_told_to_the_agent() -> None:
    for action in (actions.PressButton(Button.POWER), actions.PressKey("F5"), actions.PressKey("enter+back")):
        with pytest.raises(NoMeaning):
            calls_of(action)


@pytest.mark.slow
def test_an_episode_is_played_and_judged(url: str, bench_env: None) -> None:
    [task] = [task for task in MobileGymWorld().training_tasks() if task.category == "shop"]

    async def play(env: Any) -> None:
        from bench_env.task.registry import BaseTask

        seen = await env.reset(task, 1)
        word = seen.text.removesuffix(".").rpartition(" ")[2]
        assert seen.text == f"Like the shop and look for {word}." and word in ("apples", "pears")
        assert (seen.screenshot.size, seen.screenshot.mode) == ((100, 200), "RGB")
        assert {(await env.reset(task, seed)).text for seed in range(8)} == {
            "Like the shop and look for apples.",
            "Like the shop and look for pears.",
        }
        assert len(BaseTask.torn_down) == 8
        assert (await env.reset(task, 1)).text == seen.text
        assert await env.compute_reward() == 0.0
        await env.step(actions.Tap(LIKE))
        assert await env.compute_reward() == 0.5
        assert (await env.step(actions.TypeText(word))).error is None
        assert (await env.compute_reward(), await env.side_effects()) == (1.0, 0)
        assert (await env.step(actions.PressButton(Button.POWER))).error == "there is no button power here"
        await env.step(actions.Tap(SELL))
        assert (await env.compute_reward(), await env.side_effects()) == (0.0, 1)

    on_phone(url, play)


@pytest.mark.slow
def test_an_error_of_the_judge_and_a_dead_browser_cost_the_episode(url: str, bench_env: None) -> None:
    [task] = [task for task in MobileGymWorld().training_tasks() if task.category == "broken"]

    async def misjudged(env: Any) -> None:
        await env.reset(task, 1)
        await env.compute_reward()

    async def dead(env: Any) -> None:
        await env.reset(task, 1)
        await env._world._browser.close()
        await env.step(actions.Tap(AWAY))

    with pytest.raises(EnvironmentFailure, match=r"^judge: check_goals\(\) raised: no such field$"):
        on_phone(url, misjudged)
    with pytest.raises(EnvironmentFailure, match=r"^Tap: TargetClosedError: "):
        on_phone(url, dead)
