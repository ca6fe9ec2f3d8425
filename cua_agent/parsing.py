"""Tool calls as text: what the model wrote becomes an action, and an action becomes the text that stands for it.

A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, the format of the Qwen models. Model output is
never trusted: whatever it holds, `parse_tool_call` returns an action or a short error that the model is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from cua_agent import actions
from cua_agent.actions import COORDINATE_MAX, Action, Button, Direction, Location, Point, Target

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
PERFORM_ACTION, SLEEP, REPORT_TASK_COMPLETE = "perform_action", "sleep", "report_task_complete"

MAX_SECONDS = 30.0
"""Longest sleep or long press: a model must not be able to stall a device."""
MAX_TEXT = 2000
"""Longest text that one call may type or report, in characters."""
MAX_NAME = 200
"""Longest name of an element or key, in characters."""

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True)
class Malformed:
    """A call that means nothing; `error` (under 120 characters) names the field and what is allowed."""

    error: str


def parse_tool_call(text: str) -> Action | Malformed:
    """The action that the model's turn asks for; text around the one call is ignored. Never raises."""
    try:
        name, arguments = _find_call(text)
        action = _TOOLS[name](arguments)
        arguments.finish()
    except _CallError as error:
        return Malformed(str(error))
    return action


def render_tool_call(action: Action) -> str:
    """The canonical text of an action; `parse_tool_call` gives the same action back."""
    # "<" can only stand inside strings, where its escape means the same but can form no tag or special token.
    body = json.dumps(tool_call(action), ensure_ascii=False).replace("<", "\\u003c")
    return f"{CALL_START}\n{body}\n{CALL_END}"


def describe(action: Action) -> str:
    """One line for people, for example ``tap target=Wi-Fi``."""
    call = tool_call(action)
    arguments = dict(call["arguments"])
    name = arguments.pop("action", call["name"])
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def tool_call(action: Action) -> dict[str, Any]:
    """The call as a mapping with the keys `name` and `arguments`."""
    match action:
        case actions.Wait(seconds):
            return {"name": SLEEP, "arguments": {"seconds": _number(seconds)}}
        case actions.ReportTaskComplete(message):
            return {"name": REPORT_TASK_COMPLETE, "arguments": {"message": message} if message else {}}
        case _:
            return {"name": PERFORM_ACTION, "arguments": _action_arguments(action)}


def _action_arguments(action: Action) -> dict[str, Any]:
    match action:
        case actions.Tap(at):
            return {"action": "tap", **_location(at)}
        case actions.DoubleTap(at):
            return {"action": "double_tap", **_location(at)}
        case actions.LongPress(at, seconds):
            duration = {} if seconds == actions.LongPress.seconds else {"seconds": _number(seconds)}
            return {"action": "long_press", **_location(at), **duration}
        case actions.TypeText(text, at, press_enter):
            enter = {"enter": True} if press_enter else {}
            return {"action": "type", "text": text, **_location(at), **enter}
        case actions.Scroll(direction, at):
            return {"action": "scroll", "direction": direction.value, **_location(at)}
        case actions.Swipe(start, end):
            return {"action": "swipe", **_location(start), **_location(end, "2")}
        case actions.Drag(start, end):
            return {"action": "drag", **_location(start), **_location(end, "2")}
        case actions.PressKey(key):
            return {"action": "key", "key": key}
        case actions.PressButton(button):
            return {"action": "button", "button": button.value}
        case _:
            raise TypeError(f"{type(action).__name__} is not an action on the screen")


def _location(at: Location | None, suffix: str = "") -> dict[str, Any]:
    match at:
        case Point(x, y):
            return {f"coordinate{suffix}": [x, y]}
        case Target(name):
            return {f"target{suffix}": name}
        case None:
            return {}


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value


class _CallError(Exception):
    """Why a call is malformed; never leaves this module."""


class _Arguments:
    """Checked access to a call's arguments; each is taken once, and `finish` refuses what is left over."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._known: list[str] = []

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self._values.pop(key, None)

    def text(self, key: str, limit: int, *, default: str | None = None, empty: bool = False) -> str:
        value = self._take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise _CallError(f'"{key}" must be a string')
        if not (value or empty) or len(value) > limit:
            raise _CallError(f'"{key}" must have {0 if empty else 1} to {limit} characters')
        if not _is_unicode(value):
            raise _CallError(f'"{key}" holds half a surrogate pair; it must be valid Unicode')
        return value

    def seconds(self, key: str, *, default: float | None = None) -> float:
        value = self._take(key)
        if value is None and default is not None:
            return default
        if not (_is_number(value) and 0 <= value <= MAX_SECONDS):
            raise _CallError(f'"{key}" must be a number from 0 to {MAX_SECONDS:g}')
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise _CallError(f'"{key}" must be true or false')
        return value

    def choice(self, key: str, kind: type[_Choice]) -> _Choice:
        value = self._take(key)
        if not isinstance(value, str) or value not in {option.value for option in kind}:
            raise _CallError(f'"{key}" must be one of {", ".join(kind)}')
        return kind(value)

    def optional_location(self, suffix: str = "") -> Location | None:
        target, coordinate = f"target{suffix}", f"coordinate{suffix}"
        if target in self._values and coordinate in self._values:
            raise _CallError(f'give "{target}" or "{coordinate}", not both')
        self._known += [target, coordinate]
        if target in self._values:
            return Target(self.text(target, MAX_NAME))
        if coordinate in self._values:
            return _point(coordinate, self._take(coordinate))
        return None

    def location(self, suffix: str = "") -> Location:
        at = self.optional_location(suffix)
        if at is None:
            raise _CallError(f'"target{suffix}" or "coordinate{suffix}" is missing')
        return at

    def action(self) -> Action:
        kind = self._take("action")
        if not isinstance(kind, str) or kind not in _ACTIONS:
            raise _CallError(f'"action" must be one of {", ".join(_ACTIONS)}')
        return _ACTIONS[kind](self)

    def finish(self) -> None:
        if self._values:
            known = ", ".join(dict.fromkeys(self._known)) or "none"
            raise _CallError(f"unknown argument; allowed here: {known}")


def _point(key: str, value: Any) -> Point:
    if not (
        isinstance(value, list) and len(value) == 2 and all(_is_number(v) and 0 <= v <= COORDINATE_MAX for v in value)
    ):
        raise _CallError(f'"{key}" must be [x, y], two numbers from 0 to {COORDINATE_MAX}')
    return Point(round(value[0]), round(value[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_call(text: str) -> tuple[str, _Arguments]:
    """Name and arguments of the only call in `text`."""
    calls = text.count(CALL_START)
    if calls != 1:
        raise _CallError(f"expected exactly one {CALL_START}, found {'none' if calls == 0 else 'several'}")
    start = text.index(CALL_START) + len(CALL_START)
    end = text.find(CALL_END, start)
    if end < 0:
        raise _CallError(f"{CALL_START} is not closed by {CALL_END}")
    try:
        call = json.loads(text[start:end])
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise _CallError("the tool call is not valid JSON") from None
    if not isinstance(call, dict):
        raise _CallError('the tool call must be a JSON object with "name" and "arguments"')
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or name not in _TOOLS:
        raise _CallError(f'"name" must be one of {", ".join(_TOOLS)}')
    if not isinstance(arguments, dict):
        raise _CallError('"arguments" must be a JSON object')
    return name, _Arguments(arguments)


_ACTIONS: dict[str, Callable[[_Arguments], Action]] = {
    "tap": lambda a: actions.Tap(a.location()),
    "double_tap": lambda a: actions.DoubleTap(a.location()),
    "long_press": lambda a: actions.LongPress(a.location(), a.seconds("seconds", default=actions.LongPress.seconds)),
    "type": lambda a: actions.TypeText(a.text("text", MAX_TEXT, empty=True), a.optional_location(), a.flag("enter")),
    "swipe": lambda a: actions.Swipe(a.location(), a.location("2")),
    "scroll": lambda a: actions.Scroll(a.choice("direction", Direction), a.optional_location()),
    "drag": lambda a: actions.Drag(a.location(), a.location("2")),
    "key": lambda a: actions.PressKey(a.text("key", MAX_NAME)),
    "button": lambda a: actions.PressButton(a.choice("button", Button)),
}

_TOOLS: dict[str, Callable[[_Arguments], Action]] = {
    PERFORM_ACTION: _Arguments.action,
    SLEEP: lambda a: actions.Wait(a.seconds("seconds")),
    REPORT_TASK_COMPLETE: lambda a: actions.ReportTaskComplete(a.text("message", MAX_TEXT, default="", empty=True)),
}

ACTION_NAMES = tuple(_ACTIONS)
"""Values of the `action` argument of `perform_action`."""
