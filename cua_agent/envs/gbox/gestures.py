"""From a typed action to calls of the SDK: pure, with every name and unit as the service wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gbox_sdk.types.v1.boxes.action_press_key_params import KeysType

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Location, Point
from cua_agent.envs.gbox.settings import BoxType
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

Method = Literal["tap", "click", "long_press", "type", "swipe", "drag", "scroll", "press_key", "press_button"]

_SWIPE_MS, _DRAG_MS = 300, 1000
_MIDDLE = Point(500, 500)
_BACK = "back"  # a key to the agent, a button to the service
_KEYS = named((_BACK, *get_args(get_args(KeysType)[0])))
_BUTTONS = {
    Button.BACK: "back",
    Button.HOME: "home",
    Button.MENU: "menu",
    Button.APP_SWITCH: "appSwitch",
    Button.POWER: "power",
    Button.VOLUME_UP: "volumeUp",
    Button.VOLUME_DOWN: "volumeDown",
}


class NoGesture(Exception):  # noqa: N818 (a normal event of an episode)
    """The action cannot be done on this kind of box; the message is short and for the model."""


@dataclass(frozen=True)
class Gesture:
    """One call of the SDK's `boxes.actions`: the method and its arguments."""

    method: Method
    arguments: Mapping[str, Any] = field(default_factory=dict)


def gestures_of(action: Action, size: tuple[int, int], box: BoxType) -> list[Gesture]:
    """The calls that carry out `action` on a screen whose screenshots have `size` (width, height) pixels.

    Coordinates are pixels of the screenshot, which the service scales to the display. Empty for actions that touch
    nothing (waiting, reporting). Raises `NoGesture`.
    """
    match action:
        case actions.Tap(at):
            return [_tap(at, size, box)]
        case actions.DoubleTap(at):
            return [Gesture("click", {**_xy(at, size), "double": True})]
        case actions.LongPress(at, seconds):
            return [Gesture("long_press", {**_xy(at, size), "duration": milliseconds(seconds)})]
        case actions.TypeText(text, at, press_enter):
            if reason := untypeable(text, lines=True):
                raise NoGesture(reason)
            typed = Gesture("type", {"text": text, "mode": "replace", "press_enter": press_enter})
            return [typed] if at is None else [_tap(at, size, box), typed]
        case actions.Swipe(start, end):
            return [Gesture("swipe", _movement(start, end, size, _SWIPE_MS))]
        case actions.Drag(start, end):
            return [Gesture("drag", _movement(start, end, size, _DRAG_MS))]
        case actions.Scroll(direction, at):
            return [Gesture("scroll", {**_xy(at or _MIDDLE, size), **_half_a_screen(direction, size)})]
        case actions.PressKey(key):
            return [_key(key, box)]
        case actions.PressButton(button):
            return [_button(button, box)]
        case _:
            return []


def milliseconds(seconds: float) -> str:
    """A duration as the service writes it."""
    return f"{round(seconds * 1000)}ms"


def _xy(at: Location, size: tuple[int, int]) -> dict[str, int]:
    if not isinstance(at, Point):
        raise TypeError(f"targets are located before the action is executed, got {at}")
    x, y = at.to_pixels(*size)
    return {"x": x, "y": y}


def _tap(at: Location, size: tuple[int, int], box: BoxType) -> Gesture:
    return Gesture("tap" if box == "android" else "click", _xy(at, size))


def _movement(start: Location, end: Location, size: tuple[int, int], duration_ms: int) -> dict[str, Any]:
    return {"start": _xy(start, size), "end": _xy(end, size), "duration": f"{duration_ms}ms"}


def _half_a_screen(direction: Direction, size: tuple[int, int]) -> dict[str, int]:
    """Positive amounts reveal what is further down and further right, as `Direction` does."""
    right, down = direction.unit
    return {"scroll_x": right * (size[0] // 2), "scroll_y": down * (size[1] // 2)}


def _key(key: str, box: BoxType) -> Gesture:
    try:
        keys = keys_of(key, _KEYS)
    except UnknownKey as unknown:
        raise NoGesture(str(unknown)) from None
    if keys == [_BACK]:
        return _button(Button.BACK, box)
    if _BACK in keys:
        raise NoGesture("back is no part of a combination")
    return Gesture("press_key", {"keys": keys, "combination": len(keys) > 1})


def _button(button: Button, box: BoxType) -> Gesture:
    if box != "android":
        raise NoGesture(f"there is no button {button} here")
    return Gesture("press_button", {"buttons": [_BUTTONS[button]]})
