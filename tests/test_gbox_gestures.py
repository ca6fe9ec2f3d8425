"""From actions to the SDK's calls: names, units and places as the service wants them."""

from typing import Any, get_args, get_type_hints

import pytest
from gbox_sdk.types.v1.boxes.action_press_button_params import ActionPressButtonParams
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point, Target
from cua_agent.envs.gbox.gestures import Gesture, NoGesture, gestures_of
from cua_agent.envs.local_gbox import bodies

SIZE = (720, 1520)
MIDDLE, CORNER = Point(500, 500), Point(1000, 1000)

TYPED = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), max_size=20)
POINTS = st.builds(Point, st.integers(0, 1000), st.integers(0, 1000))
ACTIONS = st.one_of(
    st.builds(actions.Tap, POINTS),
    st.builds(actions.DoubleTap, POINTS),
    st.builds(actions.LongPress, POINTS, st.floats(0, 30)),
    st.builds(actions.TypeText, TYPED, st.none() | POINTS, st.booleans()),
    st.builds(actions.Swipe, POINTS, POINTS),
    st.builds(actions.Drag, POINTS, POINTS),
    st.builds(actions.Scroll, st.sampled_from(Direction), st.none() | POINTS),
    st.builds(actions.PressKey, st.sampled_from(["enter", "control+a", "PageUp", "esc", "up", "F5", "back"])),
    st.builds(actions.PressButton, st.sampled_from(Button)),
)
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
BODIES: dict[str, type[bodies.Body]] = {
    "tap": bodies.TapAt,
    "click": bodies.ClickAt,
    "long_press": bodies.LongPressAt,
    "type": bodies.Type,
    "swipe": bodies.SwipeBetween,
    "drag": bodies.DragBetween,
    "scroll": bodies.ScrollBy,
    "press_key": bodies.PressKey,
    "press_button": bodies.PressButton,
}


def one(action: Action, box: Any = "android") -> Gesture:
    (gesture,) = gestures_of(action, SIZE, box)
    return gesture


@pytest.mark.parametrize(
    ("action", "method", "arguments"),
    [
        (actions.Tap(MIDDLE), "tap", {"x": 359, "y": 759}),
        (actions.Tap(Point(0, 0)), "tap", {"x": 0, "y": 0}),
        (actions.Tap(CORNER), "tap", {"x": 719, "y": 1518}),
        (actions.DoubleTap(MIDDLE), "click", {"x": 359, "y": 759, "double": True}),
        (actions.LongPress(MIDDLE, 1.5), "long_press", {"x": 359, "y": 759, "duration": "1500ms"}),
        (actions.TypeText("hi", press_enter=True), "type", {"text": "hi", "mode": "replace", "press_enter": True}),
        (actions.Scroll(Direction.DOWN), "scroll", {"x": 359, "y": 759, "scroll_x": 0, "scroll_y": 760}),
        (actions.Scroll(Direction.UP, CORNER), "scroll", {"x": 719, "y": 1518, "scroll_x": 0, "scroll_y": -760}),
        (actions.Scroll(Direction.RIGHT, CORNER), "scroll", {"x": 719, "y": 1518, "scroll_x": 360, "scroll_y": 0}),
        (actions.Scroll(Direction.LEFT, CORNER), "scroll", {"x": 719, "y": 1518, "scroll_x": -360, "scroll_y": 0}),
        (actions.PressKey("enter"), "press_key", {"keys": ["enter"], "combination": False}),
        (actions.PressKey("Ctrl+A"), "press_key", {"keys": ["control", "a"], "combination": True}),
        (actions.PressKey("Enter"), "press_key", {"keys": ["enter"], "combination": False}),
        (actions.PressKey("arrowdown"), "press_key", {"keys": ["arrowDown"], "combination": False}),
        (actions.PressKey("up"), "press_key", {"keys": ["arrowUp"], "combination": False}),
        (actions.PressKey("back"), "press_button", {"buttons": ["back"]}),
        (actions.PressButton(Button.HOME), "press_button", {"buttons": ["home"]}),
        (actions.PressButton(Button.APP_SWITCH), "press_button", {"buttons": ["appSwitch"]}),
    ],
)
def test_every_action_is_one_call(action: Action, method: str, arguments: dict[str, Any]) -> None:
    gesture = one(action)
    assert (gesture.method, dict(gesture.arguments)) == (method, arguments)


def test_movements_differ_in_speed() -> None:
    ends = {"start": {"x": 0, "y": 0}, "end": {"x": 359, "y": 759}}
    swipe, drag = one(actions.Swipe(Point(0, 0), MIDDLE)), one(actions.Drag(Point(0, 0), MIDDLE))
    assert (swipe.method, swipe.arguments) == ("swipe", {**ends, "duration": "300ms"})
    assert (drag.method, drag.arguments) == ("drag", {**ends, "duration": "1000ms"})


def test_typing_into_a_field_taps_it_first() -> None:
    tap, typed = gestures_of(actions.TypeText("hi", MIDDLE), SIZE, "android")
    assert (tap.method, typed.method) == ("tap", "type")


def test_a_linux_box_is_clicked_and_has_no_phone_buttons() -> None:
    assert one(actions.Tap(MIDDLE), "linux").method == "click"
    for action in (actions.PressButton(Button.HOME), actions.PressKey("back")):
        with pytest.raises(NoGesture, match="no button"):
            gestures_of(action, SIZE, "linux")


@pytest.mark.parametrize("action", [actions.Wait(1), actions.ReportTaskComplete()])
def test_what_touches_nothing_is_no_call(action: Action) -> None:
    assert gestures_of(action, SIZE, "android") == []


@pytest.mark.parametrize("key", ["", "+", "enterr", "control+", "ctrl+nothing", "ß"])
def test_an_unknown_key_is_said_to_be_one(key: str) -> None:
    with pytest.raises(NoGesture, match="unknown key"):
        gestures_of(actions.PressKey(key), SIZE, "android")


def test_targets_must_have_been_located() -> None:
    with pytest.raises(TypeError, match="located before"):
        gestures_of(actions.Tap(Target("OK")), SIZE, "android")


def test_every_button_is_one_of_the_sdk() -> None:
    (names,) = get_args(get_type_hints(ActionPressButtonParams)["buttons"])
    assert {one(actions.PressButton(button)).arguments["buttons"][0] for button in Button} <= set(get_args(names))


@given(ACTIONS, SIZES)
def test_no_call_is_refused_by_a_strict_service(action: Action, size: tuple[int, int]) -> None:
    for gesture in gestures_of(action, size, "android"):
        body = {to_camel(name): value for name, value in gesture.arguments.items()}
        BODIES[gesture.method].model_validate(body)


@given(ACTIONS, SIZES)
def test_every_place_is_on_the_screen(action: Action, size: tuple[int, int]) -> None:
    width, height = size
    for gesture in gestures_of(action, size, "android"):
        places = [gesture.arguments, gesture.arguments.get("start", {}), gesture.arguments.get("end", {})]
        for place in places:
            assert 0 <= place.get("x", 0) < width and 0 <= place.get("y", 0) < height
