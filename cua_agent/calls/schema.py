"""From a call's name and arguments to an action: strict about what they mean, lenient about how it is spelt.

The prompt offers three tools (`cua_agent.prompts.tool_schemas`). Understood besides, because each can mean one thing
only: an action's name in place of the tool's, and the action and argument names of `computer_use` and `mobile_use`
(cookbooks/utils/agent_function_call.py of QwenLM/Qwen3-VL) and of UI-TARS, as far as they stand for the same gesture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from cua_agent import actions
from cua_agent.actions import COORDINATE_MAX, Action, Button, Direction, Location, Point, Space, Target
from cua_agent.calls.errors import CallError
from cua_agent.typed_text import MAX_TEXT

PERFORM_ACTION, SLEEP, REPORT_TASK_COMPLETE = "perform_action", "sleep", "report_task_complete"

MAX_SECONDS = 30.0
"""Longest sleep or long press: a model must not be able to stall a device."""
MAX_NAME = 200
"""Longest name of an element or key, in characters."""

_Choice = TypeVar("_Choice", bound=StrEnum)
_LARGEST_WRITTEN = 10**18
_NUMBER = r"[+-]?\d{1,9}(?:\.\d{1,9})?"
_PAIR = re.compile(rf"[\[(]?\s*({_NUMBER})(?:\s*,\s*|\s+)({_NUMBER})\s*[\])]?")
_BOX_TAGS = re.compile(r"<\|box_(?:start|end)\|>|</?point>")
_SPELLINGS = {
    "coordinate": ("point", "start_box", "start_point", "start_coordinate"),
    "coordinate2": ("end_box", "end_point", "end_coordinate"),
    "seconds": ("time",),
    "text": ("content",),
    "message": ("content",),
    "key": ("keys",),
}


class Arguments:
    """Checked access to a call's arguments; each is taken once, and `finish` refuses what is left over.

    Positions are 0..1000 in both directions or, with a `space`, pixels of an image of that (width, height).
    """

    def __init__(self, values: Mapping[str, Any], space: Space | None = None) -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._space = space
        self._known: list[str] = []

    def has(self, key: str) -> bool:
        """Whether an argument is given under any of its spellings."""
        return any(name in self._values for name in (key, *_SPELLINGS.get(key, ())))

    def _take(self, key: str) -> Any:
        self._known.append(key)
        given = [self._values.pop(name) for name in (key, *_SPELLINGS.get(key, ())) if name in self._values]
        if len(given) > 1:
            raise CallError(f'"{key}" is given twice')
        return given[0] if given else None

    def text(self, key: str, limit: int, *, default: str | None = None, empty: bool = False) -> str:
        """A text of at most `limit` characters; without `default` it must be there."""
        value = self._take(key)
        if value is None and default is not None:
            return default
        if key == "text" and _is_whole(value):  # digits to type
            value = str(value)
        if not isinstance(value, str):
            raise CallError(f'"{key}" must be a string')
        if not (value or empty) or len(value) > limit:
            raise CallError(f'"{key}" must have {0 if empty else 1} to {limit} characters')
        if not _is_unicode(value):
            raise CallError(f'"{key}" holds half a surrogate pair; it must be valid Unicode')
        return value

    def seconds(self, key: str, *, default: float | None = None) -> float:
        """A duration."""
        value = self._take(key)
        if value is None and default is not None:
            return default
        number = _number(value)
        if number is None or not 0 <= number <= MAX_SECONDS:
            raise CallError(f'"{key}" must be a number from 0 to {MAX_SECONDS:g}')
        return float(number)

    def flag(self, key: str) -> bool:
        """True or false, false by default."""
        value = self._take(key)
        if isinstance(value, str) and value.casefold() in ("true", "false"):
            value = value.casefold() == "true"
        if value is not None and not isinstance(value, bool):
            raise CallError(f'"{key}" must be true or false')
        return bool(value)

    def choice(self, key: str, kind: type[_Choice]) -> _Choice:
        """One of the words of `kind`."""
        word = _word(self._take(key))
        if word not in {option.value for option in kind}:
            raise CallError(f'"{key}" must be one of {", ".join(kind)}')
        return kind(word)

    def optional_location(self, suffix: str = "") -> Location | None:
        """An element or a position, or None."""
        target, coordinate = f"target{suffix}", f"coordinate{suffix}"
        self._known += [target, coordinate]
        self._join_x_and_y(coordinate, suffix)
        if target in self._values and self.has(coordinate):
            raise CallError(f'give "{target}" or "{coordinate}", not both')
        if target in self._values:
            return Target(self.text(target, MAX_NAME))
        value = self._take(coordinate)
        return None if value is None else self._point(coordinate, value)

    def location(self, suffix: str = "") -> Location:
        """An element or a position."""
        at = self.optional_location(suffix)
        if at is None:
            raise CallError(f'"target{suffix}" or "coordinate{suffix}" is missing')
        return at

    def key(self) -> str:
        """A key or combination: a string, or the list of its keys."""
        if "text" in self._values and not self.has("key"):  # mobile_use
            return self.text("text", MAX_NAME)
        keys = self._values.get("keys")
        if isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys):
            self._values["keys"] = "+".join(keys)
        return self.text("key", MAX_NAME)

    def direction(self) -> Direction:
        """Where the view scrolls; `computer_use` gives the pixels that it moves, positive ones up."""
        if "pixels" not in self._values or "direction" in self._values:
            return self.choice("direction", Direction)
        pixels = _number(self._take("pixels"))
        if not pixels:
            raise CallError('"pixels" must be a number other than 0')
        return Direction.UP if pixels > 0 else Direction.DOWN

    def success(self) -> None:
        """`status` of `terminate`: there is no way to give a task up."""
        if _word(self._take("status")) != "success":
            raise CallError('"status" must be success: a task cannot be given up')

    def action(self) -> Action:
        """What the argument `action` names."""
        word = _word(self._take("action"))
        if word not in _UNDERSTOOD:
            raise CallError(f'"action" must be one of {", ".join(_ACTIONS)}')
        return _UNDERSTOOD[word](self)

    def finish(self) -> None:
        """Refuse arguments that nobody took."""
        if self._values:
            known = ", ".join(dict.fromkeys(self._known)) or "none"
            raise CallError(f"unknown argument; allowed here: {known}")

    def _join_x_and_y(self, coordinate: str, suffix: str) -> None:
        x, y = f"x{suffix}", f"y{suffix}"
        if x in self._values and y in self._values and not self.has(coordinate):
            self._values[coordinate] = [self._values.pop(x), self._values.pop(y)]

    def _point(self, key: str, value: Any) -> Point:
        pair = _pair(value)
        width, height = self._space or (COORDINATE_MAX, COORDINATE_MAX)
        if pair is None or not (0 <= pair[0] <= width and 0 <= pair[1] <= height):
            bounds = f"x from 0 to {width} and y from 0 to {height}" if self._space else "two numbers from 0 to 1000"
            raise CallError(f'"{key}" must be [x, y], {bounds}')
        x, y = round(pair[0]), round(pair[1])
        if self._space is None:
            return Point(x, y)
        return Point.at_pixel(min(x, width - 1), min(y, height - 1), width, height)


def action_of(call: Mapping[str, Any], space: Space | None = None) -> Action:
    """The action that a call asks for. Raises `CallError`."""
    name, values = _name_and_arguments(call)
    arguments = Arguments(values, space)
    action = _TOOLS[name](arguments)
    arguments.finish()
    return action


def _name_and_arguments(call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Tool and arguments of a call, which may stand one level too deep or too high."""
    if isinstance(call.get("function"), dict):
        call = call["function"]
    wrapper = next((key for key in ("arguments", "parameters") if key in call), None)
    arguments = call[wrapper] if wrapper else {key: value for key, value in call.items() if key != "name"}
    if isinstance(arguments, str):
        arguments = _json(arguments)
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise CallError('"arguments" must be a JSON object')
    name = _word(call.get("name", PERFORM_ACTION if "action" in arguments else None))
    if name in _TOOLS:
        return name, arguments
    if name in _UNDERSTOOD and "action" not in arguments:
        return PERFORM_ACTION, {"action": name, **arguments}
    if name in _QWEN_TOOLS:
        return PERFORM_ACTION, arguments
    raise CallError(f'"name" must be one of {", ".join(_TOOLS)}')


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None if not text.strip() else text


def _word(value: Any) -> str:
    """A name without regard to case, blanks and hyphens; of anything else than a string, none."""
    return re.sub(r"[\s-]+", "_", value.strip().casefold()) if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip()):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _pair(value: Any) -> tuple[float, float] | None:
    """Two numbers, however they are put together."""
    if isinstance(value, str) and (match := _PAIR.fullmatch(_BOX_TAGS.sub("", value).strip())):
        value = list(match.groups())
    if isinstance(value, dict) and set(value) == {"x", "y"}:
        value = [value["x"], value["y"]]
    if not (isinstance(value, list) and len(value) == 2):
        return None
    x, y = map(_number, value)
    return None if x is None or y is None else (x, y)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_WRITTEN


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _report(key: str) -> Callable[[Arguments], Action]:
    return lambda a: actions.ReportTaskComplete(a.text(key, MAX_TEXT, default="", empty=True))


def _terminate(a: Arguments) -> Action:
    a.success()
    return actions.ReportTaskComplete()


def _system_button(a: Arguments) -> Action:
    button = a.choice("button", _SystemButton)
    return actions.PressKey("enter") if button is _SystemButton.ENTER else actions.PressButton(Button(button.value))


class _SystemButton(StrEnum):
    """Buttons of `mobile_use`."""

    BACK = "back"
    HOME = "home"
    MENU = "menu"
    ENTER = "enter"


_ACTIONS: dict[str, Callable[[Arguments], Action]] = {
    "tap": lambda a: actions.Tap(a.location()),
    "double_tap": lambda a: actions.DoubleTap(a.location()),
    "long_press": lambda a: actions.LongPress(a.location(), a.seconds("seconds", default=actions.LongPress.seconds)),
    "type": lambda a: actions.TypeText(a.text("text", MAX_TEXT, empty=True), a.optional_location(), a.flag("enter")),
    "swipe": lambda a: actions.Swipe(a.location(), a.location("2")),
    "scroll": lambda a: actions.Scroll(a.direction(), a.optional_location()),
    "drag": lambda a: actions.Drag(a.location(), a.location("2")),
    "key": lambda a: actions.PressKey(a.key()),
    "button": lambda a: actions.PressButton(a.choice("button", Button)),
}

ACTION_NAMES = tuple(_ACTIONS)
"""Values of the `action` argument of `perform_action`."""

_TOOLS: dict[str, Callable[[Arguments], Action]] = {
    PERFORM_ACTION: Arguments.action,
    SLEEP: lambda a: actions.Wait(a.seconds("seconds")),
    REPORT_TASK_COMPLETE: _report("message"),
}

_QWEN_TOOLS = ("computer_use", "mobile_use")

_UNDERSTOOD: dict[str, Callable[[Arguments], Action]] = {
    **_ACTIONS,
    SLEEP: _TOOLS[SLEEP],
    REPORT_TASK_COMPLETE: _TOOLS[REPORT_TASK_COMPLETE],
    # computer_use and mobile_use
    "click": _ACTIONS["tap"],
    "left_click": _ACTIONS["tap"],
    "double_click": _ACTIONS["double_tap"],
    "system_button": _system_button,
    "wait": _TOOLS[SLEEP],
    "terminate": _terminate,
    # UI-TARS
    "left_double": _ACTIONS["double_tap"],
    "hotkey": _ACTIONS["key"],
    "press_home": lambda _: actions.PressButton(Button.HOME),
    "press_back": lambda _: actions.PressButton(Button.BACK),
    "finished": _TOOLS[REPORT_TASK_COMPLETE],
}
