"""What the agent's actions are to MobileGym: pure. Places are 0 to 1000 in both directions on either side."""

from __future__ import annotations

from typing import Any

from cua_agent import actions
from cua_agent.actions import COORDINATE_MAX, Action, Button, Direction, Location, Point
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

_MIDDLE = Point(500, 500)
_QUARTER = COORDINATE_MAX // 4
_BUTTONS = {Button.BACK: "BACK", Button.HOME: "HOME", Button.APP_SWITCH: "RECENT"}
_KEYS = named(("enter", "back", "escape"))


class NoMeaning(Exception):  # noqa: N818 (a normal event of an episode)
    """The phone has nothing of the kind; the message is short and for the model."""


def calls_of(action: Action) -> list[tuple[str, dict[str, Any]]]:
    """Names of `bench_env`'s `ActionType` and their data, in order. Raises `NoMeaning`."""
    match action:
        case actions.Tap(at):
            return [("CLICK", {"point": _xy(at)})]
        case actions.DoubleTap(at):
            return [("DOUBLE_TAP", {"point": _xy(at)})]
        case actions.LongPress(at, seconds):
            return [("LONG_PRESS", {"point": _xy(at), "duration": round(seconds * 1000)})]
        case actions.TypeText(text, at, press_enter):
            if reason := untypeable(text, lines=True):
                raise NoMeaning(reason)
            place = {} if at is None else {"point": _xy(at)}
            return [("TYPE", {"value": text, "clear": True, **place}), *([("ENTER", {})] if press_enter else [])]
        case actions.Swipe(start, end):
            return [("SWIPE", {"point1": _xy(start), "point2": _xy(end)})]
        case actions.Drag(start, end):
            return [("DRAG", {"point1": _xy(start), "point2": _xy(end)})]
        case actions.Scroll(direction, at):
            return [("SWIPE", _scroll(direction, at or _MIDDLE))]
        case actions.PressKey(key):
            return [(_key(key), {})]
        case actions.PressButton(button):
            if button not in _BUTTONS:
                raise NoMeaning(f"there is no button {button} here")
            return [(_BUTTONS[button], {})]
        case actions.Wait(seconds):
            return [("WAIT", {"value": seconds})]
        case _:
            return []


def _xy(at: Location) -> list[int]:
    if not isinstance(at, Point):
        raise TypeError(f"targets are located before the action is executed, got {at}")
    return [at.x, at.y]


def _scroll(direction: Direction, at: Location) -> dict[str, Any]:
    """A finger that moves half a screen against the view, kept within the screen."""
    across, along = (-step for step in direction.unit)
    x, y = _xy(at)
    ends = [[_within(x + sign * across * _QUARTER), _within(y + sign * along * _QUARTER)] for sign in (-1, 1)]
    return {"point1": ends[0], "point2": ends[1]}


def _within(coordinate: int) -> int:
    return min(max(coordinate, 0), COORDINATE_MAX)


def _key(combination: str) -> str:
    try:
        keys = keys_of(combination, _KEYS)
    except UnknownKey as unknown:
        raise NoMeaning(str(unknown)) from None
    if len(keys) > 1:
        raise NoMeaning("there are no combinations of keys here")
    return "ENTER" if keys == ["enter"] else "BACK"
