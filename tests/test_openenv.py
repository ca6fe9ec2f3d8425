"""Environments behind a real OpenEnv server: its own HTTP server, the official client."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from cua_agent import actions
from cua_agent.actions import Direction, Point
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.openenv.mapping import NoMeaning, NoPicture, at_path, filled, picture, server_actions
from cua_agent.envs.openenv.settings import OpenEnvSettings
from cua_agent.envs.openenv.world import OpenEnvWorld
from cua_agent.envs.pool import EnvironmentPool
from cua_agent.envs.registry import open_world
from cua_agent.options import ConfigError
from tests.openenv_server import SIZE, ButtonEnvironment, serving
from trainers.config.compose import load_config

T = TypeVar("T")
ACTIONS = {"tap": {"type": "tap", "x": "{x}", "y": "{y}"}, "type": {"type": "type", "text": "{text}"}}
OPTIONS: dict[str, Any] = {"goal_field": "goal", "error_field": "error", "actions": ACTIONS}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as (url, _):
        yield url


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("heard", []), ("slow_s", 0.0), ("breaks", "")):
        monkeypatch.setattr(ButtonEnvironment, name, value)


def on_server(url: str, use: Callable[[Any], Awaitable[T]], timeout_s: float = 60.0, **options: Any) -> T:
    world = OpenEnvWorld(base_url=url, **{**OPTIONS, **options})

    async def main() -> T:
        async with open_world(world, timeout_s) as factory, EnvironmentPool(factory, 1) as pool, pool.lend() as env:
            return await use(env)

    return asyncio.run(main())


def button_in(screen: Image.Image, colour: tuple[int, int, int] = (255, 0, 0)) -> Point:
    rows, columns = np.nonzero((np.asarray(screen) == colour).all(axis=2))
    return Point.at_pixel(int(columns.mean()), int(rows.mean()), *SIZE)


def test_an_episode_is_played_and_scored(address: str) -> None:
    [task] = OpenEnvWorld().training_tasks()

    async def play(env: Any) -> None:
        seen = await env.reset(task, 7)
        assert (seen.text, seen.screenshot.size, seen.screenshot.mode) == ("Tap the red square.", SIZE, "RGB")
        again = await env.reset(task, 7)
        assert again.screenshot.tobytes() == seen.screenshot.tobytes()
        assert (await env.reset(task, 8)).screenshot.tobytes() != seen.screenshot.tobytes()
        result = await env.step(actions.TypeText("it's"))
        assert (result.error, result.done, await env.compute_reward()) == (None, False, 0.25)
        at = button_in((await env.reset(task, 7)).screenshot)
        assert await env.compute_reward() == 0.0
        assert (await env.step(actions.Tap(at))).done
        assert await env.compute_reward() == 1.0
        over = await env.step(actions.Tap(at))
        assert (over.done, over.error) == (True, "the episode is over")

    on_server(address, play)
    assert [(action.type, action.text) for action in ButtonEnvironment.heard] == [("type", "it's"), ("tap", None)]


def test_tasks_are_arguments_of_reset(address: str) -> None:
    world = OpenEnvWorld(base_url=address, resets={"red": {}, "blue": {"colour": "blue"}})
    _, blue = world.training_tasks()
    assert [task.category for task in world.training_tasks()] == ["red", "blue"]

    async def play(env: Any) -> None:
        seen = await env.reset(blue, 1)
        assert seen.text == "Tap the blue square."
        assert (await env.step(actions.Tap(button_in(seen.screenshot, (0, 0, 255))))).done

    on_server(address, play, resets=world.resets)


def test_what_cannot_be_done_is_told_to_the_agent(address: str) -> None:
    [task] = OpenEnvWorld().training_tasks()

    async def play(env: Any) -> list[str | None]:
        await env.reset(task, 7)
        tried = (actions.LongPress(Point(1, 1)), actions.TypeText("a", press_enter=True), actions.Scroll(Direction.UP))
        return [(await env.step(action)).error for action in tried]

    scroll = {**ACTIONS, "scroll": {"type": "scroll", "key": "{direction}"}}
    errors = on_server(address, play, actions=scroll)
    assert errors == [
        "there is no long_press here; possible: tap, type, scroll",
        "there is no key here; possible: tap, type, scroll",
        "cannot scroll",
    ]
    assert [action.type for action in ButtonEnvironment.heard] == ["scroll"]  # a text is not typed without its Enter


def test_what_an_action_is_to_a_server() -> None:
    table = OpenEnvSettings().actions
    sent = {
        actions.DoubleTap(Point(500, 500)): {"type": "double_tap", "x": 39, "y": 29},
        actions.Drag(Point(0, 0), Point(1000, 1000)): {"type": "drag", "x": 0, "y": 0, "to_x": 79, "to_y": 59},
        actions.PressKey("ctrl+A"): {"type": "key", "key": "Control+a"},
        actions.Wait(1.5): {"type": "wait", "seconds": 1.5},
    }
    for action, wanted in sent.items():
        assert server_actions(action, SIZE, table) == [wanted]
    [scroll] = server_actions(actions.Scroll(Direction.DOWN), SIZE, table)
    assert (scroll["direction"], scroll["dx"], scroll["dy"]) == ("down", 0, 30)
    typed = server_actions(actions.TypeText("a", Point(0, 0), press_enter=True), SIZE, table)
    assert [call["type"] for call in typed] == ["tap", "type", "key"]
    with pytest.raises(NoMeaning, match="unknown key 'Hyper'"):
        server_actions(actions.PressKey("Hyper"), SIZE, table)


def test_templates_keep_numbers_and_quote_texts() -> None:
    template = {"call": ["click", {"at": ["{x}", "{y}"]}], "code": "type({text!r})", "n": 1}
    assert filled(template, {"x": 3, "y": 4, "text": "it's"}) == {
        "call": ["click", {"at": [3, 4]}],
        "code": 'type("it\'s")',
        "n": 1,
    }


def test_pictures_come_as_files_or_as_numbers() -> None:
    assert picture([[[255, 0, 0], [0, 0, 255]]]).getpixel((1, 0)) == (0, 0, 255)
    assert at_path({"frames": [{"image": "x"}]}, "frames.0.image") == "x"
    assert at_path({"frames": []}, "frames.0.image") is None
    for value, reason in (
        (None, "no picture but NoneType"),
        ("no base64!", "a broken picture"),
        ([1, 2], "no picture"),
    ):
        with pytest.raises(NoPicture, match=reason):
            picture(value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["actions={poke:{type:x}}"], r"actions names 'poke'; allowed: tap, double_tap, .*"),
        (["actions={tap:{at:'{z}'}}"], r"actions\.tap=.*: 'z'; allowed in it: \{x\}, \{y\}"),
        (["returns=[1,1]"], r"returns=\[1.0, 1.0\]: two different sums are wanted"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^env\.args: {line}$"):
        load_config(["env=openenv", *(f"env.args.{override}" for override in overrides)])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"screenshot": "image.png"}, "env.args.screenshot: the server knows no 'image'; allowed: "),
        ({"actions": {"tap": {"kind": "tap"}}}, "env.args.actions.tap: the server knows no 'kind'; allowed: "),
    ],
)
def test_a_mapping_that_the_server_does_not_know_is_refused(address: str, options: Any, line: str) -> None:
    with pytest.raises(WorldUnavailable, match=rf"^{re.escape(line)}"):
        OpenEnvWorld(base_url=address, **{**OPTIONS, **options}).check()
    OpenEnvWorld(base_url=address, **OPTIONS).check()


def test_no_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        WorldUnavailable, match=rf"^env=openenv: no OpenEnv server answers at http://127\.0\.0\.1:{port}: "
    ):
        OpenEnvWorld(base_url=f"http://127.0.0.1:{port}").check()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("raise", r"step: Server error: the display server crashed \(code: EXECUTION_ERROR\)"),
        ("picture", r"env\.args\.screenshot=screenshot: a broken picture .*"),
        pytest.param("slow", r"Tap: no end within 10 s \(env\.timeout_s\)", marks=pytest.mark.slow),
    ],
)
def test_a_fault_costs_the_episode_and_is_one_line(address: str, fault: str, line: str, monkeypatch: Any) -> None:
    [task] = OpenEnvWorld().training_tasks()

    async def play(env: Any) -> None:
        await env.reset(task, 7)
        monkeypatch.setattr(ButtonEnvironment, "breaks", fault)
        monkeypatch.setattr(ButtonEnvironment, "slow_s", 15.0 if fault == "slow" else 0.0)
        await env.step(actions.Tap(Point(1, 1)))

    with pytest.raises(EnvironmentFailure) as failure:
        on_server(address, play, timeout_s=10.0 if fault == "slow" else 60.0)
    assert re.fullmatch(line, str(failure.value))


@pytest.mark.slow
def test_a_server_that_starts_again_in_an_episode_loses_it_and_plays_the_next() -> None:
    """The client connects again on its own: to a new session, which knows nothing of the episode."""
    [task] = OpenEnvWorld().training_tasks()

    async def main() -> None:
        first = serving()
        url, _ = first.__enter__()
        world = OpenEnvWorld(base_url=url, **OPTIONS)
        async with open_world(world, 60.0) as factory, EnvironmentPool(factory, 1) as pool:
            with pytest.raises(EnvironmentFailure, match=r"^step: "):
                async with pool.lend() as env:
                    await env.reset(task, 7)
                    await asyncio.to_thread(first.__exit__, None, None, None)
                    with serving(port=int(url.rpartition(":")[2])):
                        await env.step(actions.TypeText("a"))
            with serving(port=int(url.rpartition(":")[2])):
                async with pool.lend() as env:
                    assert (await env.reset(task, 7)).text == "Tap the red square."

    asyncio.run(main())


def test_a_server_without_room_for_a_session_costs_the_episode() -> None:
    [task] = OpenEnvWorld().training_tasks()

    async def main(url: str) -> None:
        world = OpenEnvWorld(base_url=url, **OPTIONS)
        async with open_world(world, 60.0) as factory, EnvironmentPool(factory, 2) as pool, pool.lend() as one:
            await one.reset(task, 1)
            async with pool.lend() as other:
                await other.reset(task, 1)

    with serving(sessions=1) as (url, _), pytest.raises(EnvironmentFailure, match=r"^reset: Server error: .*capacity"):
        asyncio.run(main(url))
