"""What the agent's actions are to a server, and where the screen is in what it answers: pure, by tables of the user."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cua_agent import actions
from cua_agent.actions import Action, Direction, Location, Point
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

VALUES: Mapping[str, tuple[str, ...]] = {
    "tap": ("x", "y"),
    "double_tap": ("x", "y"),
    "long_press": ("x", "y", "seconds"),
    "type": ("text",),
    "swipe": ("x", "y", "to_x", "to_y"),
    "drag": ("x", "y", "to_x", "to_y"),
    "scroll": ("x", "y", "direction", "dx", "dy"),
    "key": ("key",),
    "button": ("button",),
    "wait": ("seconds",),
}
"""The kinds of action, and what is known of each: places and distances in pixels of the screenshot."""

_MIDDLE = Point(500, 500)
_ARROWS = ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")
_NAMED_KEYS = ("Enter", "Tab", "Escape", "Backspace", "Delete", "Insert", "Home", "End", "PageUp", "PageDown", "Space")
_MODIFIERS = ("Control", "Shift", "Alt", "Meta")
_KEYS = named((*_NAMED_KEYS, *_ARROWS, *_MODIFIERS, *(f"F{number}" for number in range(1, 13))))
_CHARACTERS = "".join(map(chr, range(33, 127)))


class NoMeaning(Exception):  # noqa: N818 (a normal event of an episode)
    """The action means nothing here; the message is short and for the model."""


class NoPicture(ValueError):  # noqa: N818 (a state of the configuration or of the server)
    """There is no picture where one should be; the message is one line."""


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """`template` with every `{name}` replaced: a text that is nothing else becomes the value itself, in others it is
    written as `str.format` does (`{text!r}` with quotes). Raises `KeyError` for a name that is not among `values`."""
    if isinstance(template, Mapping):
        return {key: filled(part, values) for key, part in template.items()}
    if isinstance(template, list):
        return [filled(part, values) for part in template]
    if not isinstance(template, str):
        return template
    alone = re.fullmatch(r"\{(\w+)\}", template)
    return values[alone[1]] if alone else template.format_map(values)


def server_actions(action: Action, size: tuple[int, int], table: Mapping[str, Any]) -> list[Any]:
    """What the server is sent for `action` on a screenshot of `size` (width, height) pixels. Raises `NoMeaning`."""
    calls = []
    for kind, values in _calls(action, size):
        if kind not in table:
            raise NoMeaning(f"there is no {kind} here; possible: {', '.join(table)}")
        calls.append(filled(table[kind], values))
    return calls


def _calls(action: Action, size: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    match action:
        case actions.Tap(at):
            return [("tap", _xy(at, size))]
        case actions.DoubleTap(at):
            return [("double_tap", _xy(at, size))]
        case actions.LongPress(at, seconds):
            return [("long_press", {**_xy(at, size), "seconds": seconds})]
        case actions.TypeText(text, at, press_enter):
            if reason := untypeable(text, lines=True):
                raise NoMeaning(reason)
            tap = [("tap", _xy(at, size))] if at is not None else []
            return [*tap, ("type", {"text": text}), *([("key", {"key": "Enter"})] if press_enter else [])]
        case actions.Swipe(start, end):
            return [("swipe", _xy(start, size) | _xy(end, size, "to_"))]
        case actions.Drag(start, end):
            return [("drag", _xy(start, size) | _xy(end, size, "to_"))]
        case actions.Scroll(direction, at):
            return [("scroll", _xy(at or _MIDDLE, size) | _half_a_screen(direction, size))]
        case actions.PressKey(key):
            return [("key", {"key": _key(key)})]
        case actions.PressButton(button):
            return [("button", {"button": str(button)})]
        case actions.Wait(seconds):
            return [("wait", {"seconds": seconds})]
        case _:
            return []


def _xy(at: Location, size: tuple[int, int], prefix: str = "") -> dict[str, Any]:
    if not isinstance(at, Point):
        raise TypeError(f"targets are located before the action is executed, got {at}")
    x, y = at.to_pixels(*size)
    return {f"{prefix}x": x, f"{prefix}y": y}


def _half_a_screen(direction: Direction, size: tuple[int, int]) -> dict[str, Any]:
    """Positive amounts reveal what is further down and further right, as `Direction` does."""
    across, along = direction.unit
    return {"direction": str(direction), "dx": across * size[0] // 2, "dy": along * size[1] // 2}


def _key(combination: str) -> str:
    try:
        return "+".join(keys_of(combination, _KEYS, _CHARACTERS))
    except UnknownKey as unknown:
        raise NoMeaning(str(unknown)) from None


def at_path(observation: Any, path: str) -> Any:
    """What stands at a dotted path (`screen.image`, `frames.0`) in mappings and lists; None when nothing does."""
    for part in path.split("."):
        try:
            observation = observation[int(part) if isinstance(observation, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return observation


def picture(value: Any) -> Image.Image:
    """The RGB picture in a server's answer: base64 or a data URI of an image file, or [height, width, 3] numbers.

    Raises `NoPicture`.
    """
    try:
        if isinstance(value, str):
            file = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
            return Image.open(io.BytesIO(file)).convert("RGB")
        array = np.asarray(value, dtype=np.uint8) if isinstance(value, list) else np.empty(0)
        if array.ndim == 3 and array.shape[2] in (3, 4):
            return Image.fromarray(array).convert("RGB")
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError) as error:
        raise NoPicture(f"a broken picture ({error})") from error
    raise NoPicture(f"no picture but {type(value).__name__}; wanted: base64, a data URI or [height, width, 3] numbers")
