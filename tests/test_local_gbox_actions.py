"""Conformance: looking and acting through the official SDK's sync and async clients."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gbox_sdk import BadRequestError
from local_gbox_rig import AFTER, AIRPLANE, DISPLAY, HOME, LAUNCHER, SETTINGS, Sdk, decoded, sdk
from PIL import Image, ImageChops

from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.state import make_state


@pytest.fixture(scope="module")
def server() -> Iterator[LocalGBox]:
    with running() as server:
        yield server


@pytest.fixture(scope="module", params=["sync", "async"])
def client(server: LocalGBox, request: pytest.FixtureRequest) -> Iterator[Sdk]:
    with sdk(server, request.param) as client:
        yield client


@pytest.fixture
def box(client: Sdk) -> Iterator[str]:
    made = client(lambda c: c.v1.boxes.create_android(config={"labels": {"of": "test"}, "expires_in": "10m"}))
    yield made.id
    client(lambda c: c.v1.boxes.terminate(made.id))


def test_screenshot_is_the_phones_screen(client: Sdk, box: str) -> None:
    client.reset(box, HOME, scale=2)
    assert client.screen(box).tobytes() == draw(make_state(HOME, "fixed"), 2).tobytes()


def test_screenshot_behind_a_link(client: Sdk, box: str) -> None:
    client.reset(box, HOME)
    shot = client.act(box, "screenshot", output_format="storageKey", presigned_expires_in="1m", save_to_album=False)
    assert shot.uri.startswith("screenshots/")
    linked = Image.open(io.BytesIO(httpx.get(shot.presigned_url).raise_for_status().content)).convert("RGB")
    assert linked.tobytes() == client.screen(box).tobytes()


def test_screenshot_clip(client: Sdk, box: str) -> None:
    client.reset(box, HOME)
    clipped = decoded(client.act(box, "screenshot", clip={"x": 10, "y": 20, "width": 30, "height": 40}).uri)
    assert clipped.tobytes() == client.screen(box).crop((10, 20, 40, 60)).tobytes()
    with pytest.raises(BadRequestError, match="outside the screenshot of 128 x 224"):
        client.act(box, "screenshot", clip={"x": 128, "y": 0, "width": 30, "height": 40})


def test_scrolled_screenshot_shows_the_whole_list(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)  # seven rows, of which five are in view
    top = client.screen(box)
    whole = decoded(client.act(box, "screenshot", scroll_capture={"scroll_back": True}).uri)
    assert whole.size == (128, 224 + 2 * 32)
    assert whole.crop((0, 0, 128, 192)).tobytes() == top.crop((0, 0, 128, 192)).tobytes()
    assert client.screen(box).tobytes() == top.tobytes()  # scrolled back
    low = decoded(client.act(box, "screenshot", scroll_capture={"max_height": 100}).uri)
    assert low.tobytes() == whole.crop((0, 0, 128, 100)).tobytes()
    bottom = client.screen(box)  # this time it stayed at the end
    assert whole.crop((0, 32 + 2 * 32, 128, 224 + 2 * 32)).tobytes() == bottom.crop((0, 32, 128, 224)).tobytes()


def spot(client: Sdk, box: str, name: str) -> dict[str, int]:
    """Where the grounding service sees a named element on the screen."""
    uri = client.act(box, "screenshot").uri
    coordinates: dict[str, int] = client.ground(uri, type="click", target=name)["coordinates"]
    assert coordinates != {"x": -1, "y": -1}, f"{name} is not on the screen"
    return coordinates


def test_tap(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    assert client.setting(box, AIRPLANE) == "1"
    result = client.act(box, "tap", **spot(client, box, "Airplane mode"))
    assert result.message == "tap executed"
    assert client.setting(box, AIRPLANE) == "0"
    client.act(box, "tap", target="airplane MODE")
    assert client.setting(box, AIRPLANE) == "1"
    with pytest.raises(BadRequestError, match="target 'Pay' was not found"):
        client.act(box, "tap", target="Pay")
    with pytest.raises(BadRequestError, match=r"\(128, 1\) is outside the screen of 128 x 224"):
        client.act(box, "tap", x=128, y=1)


def test_tap_on_a_detected_element(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    where = spot(client, box, "Airplane mode")
    size = {"x": 0, "y": 0, "width": 128, "height": 32}
    words = {"id": "1", "label": "Airplane mode", "path": "/", "source": "screen", "type": "row"}
    client.act(box, "tap", target={**words, **size, "center_x": where["x"], "center_y": where["y"]})
    assert client.setting(box, AIRPLANE) == "0"


def test_click(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    where = spot(client, box, "Airplane mode")
    client.act(box, "click", **where, button="left")
    assert client.setting(box, AIRPLANE) == "0"
    client.act(box, "click", **where, double=True)  # twice: back to where it was
    assert client.setting(box, AIRPLANE) == "0"
    client.act(box, "click", **where, button="right")
    assert client.setting(box, AIRPLANE) == "0"
    client.act(box, "click", target="Airplane mode")
    assert client.setting(box, AIRPLANE) == "1"


def test_move_and_long_press_change_nothing(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    before = client.screen(box)
    where = spot(client, box, "Airplane mode")
    client.act(box, "move", **where)
    client.act(box, "long_press", **where, duration="1500ms")
    client.act(box, "long_press", target="Airplane mode")
    assert client.screen(box).tobytes() == before.tobytes()


def test_type(client: Sdk, box: str) -> None:
    client.reset(box, HOME)
    client.act(box, "tap", target="Browser")
    assert "no text field has the focus" in client.act(box, "type", text="lost").message
    client.act(box, "tap", target="Address bar")
    client.act(box, "type", text="sto")
    client.act(box, "type", text="ne", press_enter=True)  # appends
    assert client.shell(box, "dumpsys activity top | grep dat=").stdout.strip().endswith("?q=stone")
    client.act(box, "tap", target="Address bar")
    client.act(box, "type", text="wrong")
    for text in ("x" * 2000, "a\nb"):  # appended to "wrong", the first one is too long
        with pytest.raises(BadRequestError, match="nothing was typed"):
            client.act(box, "type", text=text)
    client.act(box, "type", text="cloud", mode="replace", press_enter=True)
    assert client.shell(box, "dumpsys activity top | grep dat=").stdout.strip().endswith("?q=cloud")


def test_press_key(client: Sdk, box: str) -> None:
    client.reset(box, HOME)
    client.act(box, "tap", target="Browser")
    client.act(box, "tap", target="Address bar")
    client.act(box, "type", text="stones")
    client.act(box, "press_key", keys=["backspace", "enter"])
    assert client.shell(box, "dumpsys activity top | grep dat=").stdout.strip().endswith("?q=stone")
    combined = client.act(box, "press_key", keys=["control", "a"], combination=True)
    assert "unknown key 'control+a'" in combined.message
    client.act(box, "press_key", keys=["escape", "escape"])
    assert client.focus(box) == LAUNCHER


def test_press_button(client: Sdk, box: str) -> None:
    client.reset(box, DISPLAY)
    client.act(box, "press_button", buttons=["back"])
    assert client.focus(box) == "com.android.settings/.Main"
    client.act(box, "press_button", buttons=["volumeUp", "volumeDown", "volumeMute", "menu", "appSwitch", "power"])
    client.act(box, "press_button", buttons=["home"])
    assert client.focus(box) == LAUNCHER


def rows_moved(before: Image.Image, after: Image.Image) -> int:
    """By how many rows of 32 pixels a list moved up (negative: down) between two screenshots."""
    for rows in (0, 2, -2):
        low, high = (rows, 0) if rows >= 0 else (0, -rows)
        old = before.crop((0, 32 * (1 + low), 128, 192 - 32 * high))
        new = after.crop((0, 32 * (1 + high), 128, 192 - 32 * low))
        if not ImageChops.difference(old, new).getbbox():
            return rows
    raise AssertionError("the list did not move by whole rows")


@pytest.mark.parametrize(
    ("name", "arguments", "moved"),
    [
        ("scroll", {"x": 64, "y": 100, "scroll_x": 0, "scroll_y": 80}, 2),
        ("scroll", {"x": 64, "y": 100, "scroll_x": 80, "scroll_y": 0}, 0),
        ("scroll", {"x": 64, "y": 100, "scroll_x": 0, "scroll_y": 0}, 0),
        ("scroll", {"direction": "up"}, 2),  # the content goes up and reveals what is below
        ("scroll", {"direction": "down"}, 0),  # already at the top
        ("scroll", {"direction": "up", "distance": 100, "duration": "200ms"}, 2),
        ("scroll", {"direction": "up", "distance": "medium", "location": "Airplane mode"}, 2),
        ("swipe", {"start": {"x": 64, "y": 150}, "end": {"x": 64, "y": 60}, "duration": "300ms"}, 2),
        ("swipe", {"start": "Do not disturb", "end": {"x": 64, "y": 5}}, 2),
        ("swipe", {"direction": "up"}, 2),
        ("swipe", {"direction": "upLeft", "distance": "long"}, 2),
        ("swipe", {"direction": "up", "distance": 5}, 0),  # too short to be a swipe
        ("swipe", {"direction": "right", "distance": "tiny"}, 0),
        ("drag", {"start": {"x": 64, "y": 150}, "end": {"x": 64, "y": 60}, "duration": "1s"}, 2),
        ("drag", {"path": [{"x": 64, "y": 150}, {"x": 20, "y": 100}, {"x": 64, "y": 60}], "duration": "50ms"}, 2),
    ],
)
def test_movements_on_a_list(client: Sdk, box: str, name: str, arguments: Any, moved: int) -> None:
    client.reset(box, SETTINGS)
    before = client.screen(box)
    result = client.act(box, name, **arguments, options=AFTER)
    assert rows_moved(before, decoded(result.screenshot.after.uri)) == moved


def test_scrolling_back(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    top = client.screen(box)
    client.act(box, "scroll", direction="up")
    assert client.screen(box).tobytes() != top.tobytes()
    client.act(box, "scroll", x=64, y=100, scroll_x=0, scroll_y=-80)
    assert client.screen(box).tobytes() == top.tobytes()


def test_dragging_the_slider(client: Sdk, box: str) -> None:
    client.reset(box, DISPLAY)
    client.act(box, "drag", start={"x": 42, "y": 54}, end={"x": 76, "y": 54})  # the slider goes from x = 40 to 88
    assert client.setting(box, "system screen_brightness") == str(round(0.75 * 255))


ACTIONS: list[tuple[str, dict[str, Any]]] = [
    ("click", {"x": 3, "y": 3}),
    ("tap", {"x": 3, "y": 3}),
    ("move", {"x": 3, "y": 3}),
    ("long_press", {"x": 3, "y": 3}),
    ("type", {"text": "a"}),
    ("swipe", {"direction": "up"}),
    ("drag", {"start": {"x": 1, "y": 1}, "end": {"x": 9, "y": 9}}),
    ("scroll", {"direction": "up"}),
    ("press_key", {"keys": ["tab"]}),
    ("press_button", {"buttons": ["menu"]}),
]


@pytest.mark.parametrize(("name", "arguments"), ACTIONS)
def test_every_action_returns_the_screenshot_it_is_asked_for(
    client: Sdk, box: str, name: str, arguments: dict[str, Any]
) -> None:
    client.reset(box, HOME)
    options = {"screenshot": {"phases": ["after"], "delay": "10ms", "output_format": "base64"}}
    result = client.act(box, name, **arguments, options=options)
    assert result.action_id and result.message.startswith(name.replace("_", "-"))
    assert result.screenshot.before is None and result.screenshot.trace is None
    assert decoded(result.screenshot.after.uri).tobytes() == client.screen(box).tobytes()


def test_phases(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    before, where = client.screen(box), spot(client, box, "Airplane mode")
    shots = client.act(box, "tap", **where, options={"screenshot": True}).screenshot
    assert decoded(shots.before.uri).tobytes() == before.tobytes()
    assert decoded(shots.after.uri).tobytes() == client.screen(box).tobytes() != before.tobytes()
    marked = ImageChops.difference(decoded(shots.trace.uri), before).getbbox()
    assert marked and marked[0] < where["x"] < marked[2] and marked[1] < where["y"] < marked[3]
    assert client.act(box, "tap", **where, options={"screenshot": False}).screenshot is None
    assert client.act(box, "tap", **where, options={"screenshot": {"phases": []}}).screenshot is None
    linked = client.act(
        box, "tap", **where, options={"screenshot": {"phases": ["after"], "output_format": "storageKey"}}
    )
    assert httpx.get(linked.screenshot.after.presigned_url).headers["content-type"] == "image/png"


def test_deprecated_way_to_ask_for_screenshots(client: Sdk, box: str) -> None:
    shots = client.act(box, "tap", x=3, y=3, include_screenshot=True, screenshot_delay="1ms").screenshot
    assert decoded(shots.after.uri).size == (128, 224)
    plain = client.act(box, "tap", x=3, y=3).screenshot
    assert (plain.before.uri, plain.after.uri, plain.trace.uri) == ("", "", "")


def test_settings_scale_screenshots_and_coordinates(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS, scale=2)
    at_full_size = spot(client, box, "Airplane mode")
    assert client(lambda c: c.v1.boxes.actions.settings_update(box, scale=0.5)).scale == 0.5
    assert client(lambda c: c.v1.boxes.actions.settings(box)).scale == 0.5
    assert client.screen(box).size == (128, 224)
    at_half_size = spot(client, box, "Airplane mode")
    assert all(abs(at_full_size[axis] - 2 * at_half_size[axis]) <= 1 for axis in "xy")
    client.act(box, "tap", **at_half_size)
    assert client.setting(box, AIRPLANE) == "0"
    display = client(lambda c: c.v1.boxes.display(box))
    assert (display.resolution.width, display.resolution.height) == (256, 448)  # the real screen
    assert client(lambda c: c.v1.boxes.actions.settings_reset(box)).scale == 1
    assert client.screen(box).size == (256, 448)
