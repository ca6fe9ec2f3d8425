"""What each action does to the phone."""

from __future__ import annotations

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Location, Point
from cua_agent.envs.pocket.screens import (
    HEIGHT,
    SCROLL_ROWS,
    WIDTH,
    element_at,
    go_back,
    go_home,
    list_rows,
    scroll,
    set_brightness_at,
)
from cua_agent.envs.pocket.state import PhoneState
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

_MIN_SWIPE = 12  # logical pixels; a shorter movement is no swipe
_KEYS = named(("enter", "backspace", "back", "escape"))


def apply_action(state: PhoneState, action: Action) -> str | None:
    """Change the state as the action would; returns why nothing could happen, or None."""
    error = _dispatch(state, action)
    state.advance()
    return error


def _dispatch(state: PhoneState, action: Action) -> str | None:
    match action:
        case actions.Tap(at):
            return _tap(state, at)
        case actions.DoubleTap(at):
            return _tap(state, at) or _tap(state, at)
        case actions.LongPress(_):
            return None
        case actions.TypeText(text, at, press_enter):
            return (_tap(state, at) if at else None) or _type(state, text, press_enter)
        case actions.Scroll(direction, _):
            return _scroll(state, direction)
        case actions.Swipe(start, end) | actions.Drag(start, end):
            return _move(state, _pixels(start), _pixels(end))
        case actions.PressKey(key):
            return _key(state, key)
        case actions.PressButton(button):
            return _button(state, button)
        case _:
            return None


def _pixels(location: Location) -> tuple[int, int]:
    if not isinstance(location, Point):
        raise TypeError(f"targets are located before the action is executed, got {location}")
    return location.to_pixels(WIDTH, HEIGHT)


def _tap(state: PhoneState, at: Location) -> str | None:
    x, y = _pixels(at)
    element = element_at(state, x, y)
    if element is None:
        return "nothing there"
    if element.name == "Brightness":
        set_brightness_at(state, x)
    else:
        element.effect(state)
    return None


def _type(state: PhoneState, text: str, press_enter: bool) -> str | None:
    if state.dialog or state.focus is None:
        return "no text field has the focus"
    if reason := untypeable(text, lines=False):
        return reason
    _write(state, state.focus, text)
    if press_enter:
        _submit(state)
    return None


def _write(state: PhoneState, field: str, text: str) -> None:
    state.draft[field] = text
    state.first_row[state.screen] = 0  # what a search finds is shown from its top


def _submit(state: PhoneState) -> None:
    if state.focus == "Address bar":
        state.query = state.draft.pop("Address bar", "").strip()
    state.focus = None


def _scroll(state: PhoneState, direction: Direction) -> str | None:
    if state.dialog or not list_rows(state) or direction in (Direction.LEFT, Direction.RIGHT):
        return "nothing to scroll"
    scroll(state, SCROLL_ROWS if direction is Direction.DOWN else -SCROLL_ROWS)
    return None


def _move(state: PhoneState, start: tuple[int, int], end: tuple[int, int]) -> str | None:
    """A finger movement: on the slider it sets the brightness, on a list it scrolls against the movement."""
    if state.dialog:
        return "nothing moved"
    element = element_at(state, *start)
    if element and element.name == "Brightness":
        set_brightness_at(state, end[0])
        return None
    distance = end[1] - start[1]
    if abs(distance) < _MIN_SWIPE or not list_rows(state):
        return "nothing moved"
    scroll(state, SCROLL_ROWS if distance < 0 else -SCROLL_ROWS)
    return None


def _key(state: PhoneState, combination: str) -> str | None:
    try:
        keys = keys_of(combination, _KEYS)
    except UnknownKey as unknown:
        return str(unknown)
    key = "+".join(keys)
    if key == "enter" and state.focus:
        _submit(state)
        return None
    if key == "backspace" and state.focus:
        _write(state, state.focus, state.draft.get(state.focus, "")[:-1])
        return None
    if key in ("back", "escape"):
        go_back(state)
        return None
    return f"key {key[:20]!r} does nothing here"


def _button(state: PhoneState, button: Button) -> str | None:
    if button is Button.BACK:
        go_back(state)
    elif button is Button.HOME and not state.dialog:
        go_home(state)
    elif button is Button.HOME:
        return "a dialog is in the way"
    else:
        return f"button {button} does nothing here"
    return None
