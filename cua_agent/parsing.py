"""Tool calls as text: what the model wrote becomes an action, and an action becomes the text that stands for it.

A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, the format of the Qwen models. Model output is
never trusted: whatever it holds, `parse_tool_call` returns an action or a short error that the model is shown. What is
nearly such a call is understood where it can mean one thing only (`cua_agent.calls`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cua_agent import actions
from cua_agent.actions import Action, Location, Point, Space, Target
from cua_agent.calls.errors import CallError
from cua_agent.calls.notation import CALL_END, CALL_START, find_call
from cua_agent.calls.schema import PERFORM_ACTION, REPORT_TASK_COMPLETE, SLEEP, action_of


@dataclass(frozen=True)
class Malformed:
    """A call that means nothing; `error` (under 120 characters) names the field and what is allowed."""

    error: str


def parse_tool_call(text: str, space: Space | None = None, *, truncated: bool = False) -> Action | Malformed:
    """The action that the model's turn asks for; text around the one call is ignored. Never raises.

    `text` begins with the thought that the prompt opened, if it did. Positions are 0..1000 or, with a `space`, pixels
    of an image of that (width, height). A turn that the token limit cut off (`truncated`) is never completed.
    """
    try:
        return action_of(find_call(text, truncated=truncated), space)
    except CallError as error:
        return Malformed(str(error))


def render_tool_call(action: Action, space: Space | None = None) -> str:
    """The canonical text of an action; `parse_tool_call` gives the same action back, with a `space` positions to its
    pixel."""
    # "<" can only stand inside strings, where its escape means the same but can form no tag or special token.
    body = json.dumps(tool_call(action, space), ensure_ascii=False).replace("<", "\\u003c")
    return f"{CALL_START}\n{body}\n{CALL_END}"


def describe(action: Action) -> str:
    """One line for people, for example ``tap target=Wi-Fi``."""
    call = tool_call(action)
    arguments = dict(call["arguments"])
    name = arguments.pop("action", call["name"])
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def tool_call(action: Action, space: Space | None = None) -> dict[str, Any]:
    """The call as a mapping with the keys `name` and `arguments`; positions in 0..1000 or pixels of `space`."""
    match action:
        case actions.Wait(seconds):
            return {"name": SLEEP, "arguments": {"seconds": _number(seconds)}}
        case actions.ReportTaskComplete(message):
            return {"name": REPORT_TASK_COMPLETE, "arguments": {"message": message} if message else {}}
        case _:
            return {"name": PERFORM_ACTION, "arguments": _action_arguments(action, space)}


def _action_arguments(action: Action, space: Space | None) -> dict[str, Any]:
    match action:
        case actions.Tap(at):
            return {"action": "tap", **_location(at, space)}
        case actions.DoubleTap(at):
            return {"action": "double_tap", **_location(at, space)}
        case actions.LongPress(at, seconds):
            duration = {} if seconds == actions.LongPress.seconds else {"seconds": _number(seconds)}
            return {"action": "long_press", **_location(at, space), **duration}
        case actions.TypeText(text, at, press_enter):
            enter = {"enter": True} if press_enter else {}
            return {"action": "type", "text": text, **_location(at, space), **enter}
        case actions.Scroll(direction, at):
            return {"action": "scroll", "direction": direction.value, **_location(at, space)}
        case actions.Swipe(start, end):
            return {"action": "swipe", **_location(start, space), **_location(end, space, "2")}
        case actions.Drag(start, end):
            return {"action": "drag", **_location(start, space), **_location(end, space, "2")}
        case actions.PressKey(key):
            return {"action": "key", "key": key}
        case actions.PressButton(button):
            return {"action": "button", "button": button.value}
        case _:
            raise TypeError(f"{type(action).__name__} is not an action on the screen")


def _location(at: Location | None, space: Space | None, suffix: str = "") -> dict[str, Any]:
    match at:
        case Point(x, y):
            return {f"coordinate{suffix}": [x, y] if space is None else list(at.to_pixels(*space))}
        case Target(name):
            return {f"target{suffix}": name}
        case None:
            return {}


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
