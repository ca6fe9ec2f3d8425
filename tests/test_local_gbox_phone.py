"""The phone behind the API is the `pocket` environment's: same pixels, same reactions, same scores."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_gbox_rig import Sdk, sdk
from pocket_rig import perform

from cua_agent.actions import Action, ReportTaskComplete, Scroll, Tap, Target, TypeText
from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.phone import Phone
from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH
from cua_agent.tasks import CUATask, get_eval_tasks, seed_for

# Names that a pocket screen and its own grounder may have to do with; most are not there at any one time.
NAMES = ["Wi-Fi", "Settings", "Back", "Home", "OK", "Brightness", "+", "Search", "nothing"]


@given(
    pixel_scale=st.integers(1, 8),
    view_scale=st.sampled_from([1.0, 0.75, 0.5, 0.33]),
    fraction=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_a_pixel_of_the_screenshot_is_the_same_place_at_any_scale(
    pixel_scale: int, view_scale: float, fraction: tuple[float, float]
) -> None:
    phone = Phone(0, "fixed", pixel_scale, view_scale)
    width, height = phone.view_size
    assert (width, height) == (round(128 * pixel_scale * view_scale), round(224 * pixel_scale * view_scale))
    x, y = fraction[0] * width, fraction[1] * height
    logical = phone.point(x, y).to_pixels(WIDTH, HEIGHT)
    # The logical pixel that holds the same fraction of the screen; one off where floats fall on its border.
    assert abs(logical[0] - int(fraction[0] * WIDTH)) <= 1 and abs(logical[1] - int(fraction[1] * HEIGHT)) <= 1


@given(pixel_scale=st.integers(1, 8), x=st.integers(0, WIDTH - 1), y=st.integers(0, HEIGHT - 1))
def test_every_real_pixel_belongs_to_its_logical_one(pixel_scale: int, x: int, y: int) -> None:
    phone = Phone(0, "fixed", pixel_scale)
    for offset in (0, pixel_scale - 1):
        assert phone.point(x * pixel_scale + offset, y * pixel_scale + offset).to_pixels(WIDTH, HEIGHT) == (x, y)


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -0.1), (64, 0), (0, 112), (1e9, 0)])
def test_outside_of_the_screenshot(x: float, y: float) -> None:
    with pytest.raises(ApiError, match="outside the screen of 64 x 112"):
        Phone(0, "fixed", 1, view_scale=0.5).point(x, y)


@given(seed=st.integers(0, 10**9), pixel_scale=st.integers(1, 3), view_scale=st.sampled_from([1.0, 0.5]))
def test_the_grounder_finds_what_pockets_does(seed: int, pixel_scale: int, view_scale: float) -> None:
    phone = Phone(seed, "shuffled", pixel_scale, view_scale)
    environment = PocketEnvironment()
    environment._state = phone.state
    for name in NAMES:
        expected = asyncio.run(environment.locate(name))
        pixel = phone.targets().get(name.casefold())
        assert (pixel is None) == (expected is None)
        if pixel and expected:
            near, wanted = phone.point(*pixel).to_pixels(WIDTH, HEIGHT), expected.to_pixels(WIDTH, HEIGHT)
            assert max(abs(near[0] - wanted[0]), abs(near[1] - wanted[1])) <= (1 if view_scale < 1 else 0)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalGBox]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LocalGBox) -> Iterator[Sdk]:
    with sdk(server) as client:
        yield client


def send(client: Sdk, box: str, action: Action) -> None:
    """One of the expert's actions as calls of the API."""
    match action:
        case Tap(Target(name)):
            client.act(box, "tap", target=name)
        case Scroll(direction, None):
            client.act(box, "scroll", x=64, y=110, scroll_x=0, scroll_y=112 if direction == "down" else -112)
        case TypeText(text, Target(name), press_enter):
            client.act(box, "tap", target=name)
            client.act(box, "type", text=text, mode="replace", press_enter=press_enter)
        case _:
            raise AssertionError(f"the expert does not {action}")


def one_task_of_each_family() -> list[CUATask]:
    return list({task.category: task for task in get_eval_tasks("pocket", "templates")}.values())


@pytest.mark.slow
@pytest.mark.parametrize("task", one_task_of_each_family(), ids=lambda task: task.category)
def test_an_episode_over_http_is_the_episode_in_process(client: Sdk, task: CUATask) -> None:
    """The expert plays on both: equal pixels and equal scores at every step, from the start to the goal."""
    box = client(lambda c: c.v1.boxes.create_android()).id

    async def probe(command: str) -> str:
        return str(client.shell(box, command).stdout)

    async def play(seed: int) -> float:
        environment = PocketEnvironment()
        await environment.reset(task, seed)
        assert client.shell(box, f"pocket reset {task.id} {seed} shuffled 1").stdout.strip() == task.description
        before = await task.validation.snapshot(probe)
        expert = Expert(task.validation, environment.before)
        while True:
            in_process = await environment.compute_reward()
            assert await task.validation.score(probe, before) == in_process
            action = expert.action(environment.state)
            if isinstance(action, ReportTaskComplete):
                return in_process
            if isinstance(action, TypeText):
                # The API taps and types in two calls, which are two actions of the phone.
                assert action.at is not None
                await perform(environment, Tap(action.at))
                await perform(environment, TypeText(action.text, None, action.press_enter))
            else:
                await perform(environment, action)
            send(client, box, action)
            screenshot = (await environment.step(ReportTaskComplete())).observation.screenshot
            client.act(box, "press_button", buttons=["menu"])  # as the report above: an action that does nothing
            assert client.screen(box).tobytes() == screenshot.tobytes()

    assert [asyncio.run(play(seed_for("eval", index))) for index in range(3)] == [1.0, 1.0, 1.0]
    client(lambda c: c.v1.boxes.terminate(box))
