"""From a typed action to a line for the phone's shell: pure, with every text quoted."""

from __future__ import annotations

import base64
import re
import shlex

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Location, Point
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

ADB_KEYBOARD = "com.android.adbkeyboard/.AdbIME"
"""The input method ADBKeyBoard, which types what it is sent in broadcasts, in any script."""

_SWIPE_MS, _SCROLL_MS, _DRAG_MS = 300, 500, 1000
_MIDDLE = Point(500, 500)
_SELECT_ALL = "input keycombination KEYCODE_CTRL_LEFT KEYCODE_A"
_ENTER = "input keyevent KEYCODE_ENTER"
_BUTTONS = {
    Button.BACK: "KEYCODE_BACK",
    Button.HOME: "KEYCODE_HOME",
    Button.MENU: "KEYCODE_MENU",
    Button.APP_SWITCH: "KEYCODE_APP_SWITCH",
    Button.POWER: "KEYCODE_POWER",
    Button.VOLUME_UP: "KEYCODE_VOLUME_UP",
    Button.VOLUME_DOWN: "KEYCODE_VOLUME_DOWN",
}
_KEYCODES = {
    "backspace": "DEL",
    "delete": "FORWARD_DEL",
    "insert": "INSERT",
    "escape": "ESCAPE",
    "home": "MOVE_HOME",
    "end": "MOVE_END",
    "pageup": "PAGE_UP",
    "pagedown": "PAGE_DOWN",
    "control": "CTRL_LEFT",
    "shift": "SHIFT_LEFT",
    "alt": "ALT_LEFT",
    "meta": "META_LEFT",
    **{f"arrow{way}": f"DPAD_{way.upper()}" for way in ("up", "down", "left", "right")},
    **{name: name.upper() for name in ("enter", "tab", "space", "back", *(f"f{number}" for number in range(1, 13)))},
    **{character: character.upper() for character in "abcdefghijklmnopqrstuvwxyz0123456789"},
}
_KEYS = named(_KEYCODES)


class NotPossible(Exception):  # noqa: N818 (a normal event of an episode)
    """The action cannot be done on this phone; the message is short and for the model."""


def command_of(action: Action, size: tuple[int, int], adb_keyboard: bool) -> str:
    """The shell line that carries out `action` on a screen of `size` (width, height) pixels; empty for actions that
    touch nothing. `adb_keyboard`: ADBKeyBoard is the phone's input method. Raises `NotPossible`."""
    match action:
        case actions.Tap(at):
            return _tap(at, size)
        case actions.DoubleTap(at):
            return f"{_tap(at, size)} && {_tap(at, size)}"
        case actions.LongPress(at, seconds):
            return f"input swipe {_xy(at, size)} {_xy(at, size)} {round(seconds * 1000)}"
        case actions.TypeText(text, at, press_enter):
            before, after = [_tap(at, size)] if at else [], [_ENTER] if press_enter else []
            return " && ".join([*before, *_typing(text, adb_keyboard), *after])
        case actions.Swipe(start, end):
            return f"input swipe {_xy(start, size)} {_xy(end, size)} {_SWIPE_MS}"
        case actions.Drag(start, end):
            return f"input draganddrop {_xy(start, size)} {_xy(end, size)} {_DRAG_MS}"
        case actions.Scroll(direction, at):
            return _scroll(direction, at or _MIDDLE, size)
        case actions.PressKey(key):
            return _press(key)
        case actions.PressButton(button):
            return f"input keyevent {_BUTTONS[button]}"
        case _:
            return ""


def _pixel(at: Location, size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(at, Point):
        raise TypeError(f"targets are located before the action is executed, got {at}")
    return at.to_pixels(*size)


def _xy(at: Location, size: tuple[int, int]) -> str:
    return "{} {}".format(*_pixel(at, size))


def _tap(at: Location, size: tuple[int, int]) -> str:
    return f"input tap {_xy(at, size)}"


def _scroll(direction: Direction, at: Location, size: tuple[int, int]) -> str:
    """A finger that moves half a screen against the view, kept within the screen."""
    across, along = (-step for step in direction.unit)
    x, y = _pixel(at, size)
    ends = [
        f"{_within(x + sign * across * size[0] // 4, size[0])} {_within(y + sign * along * size[1] // 4, size[1])}"
        for sign in (-1, 1)
    ]
    return f"input swipe {ends[0]} {ends[1]} {_SCROLL_MS}"


def _within(pixel: int, size: int) -> int:
    return min(max(pixel, 0), size - 1)


def _press(combination: str) -> str:
    try:
        keys = [f"KEYCODE_{_KEYCODES[key]}" for key in keys_of(combination, _KEYS)]
    except UnknownKey as unknown:
        raise NotPossible(str(unknown)) from None
    return f"input {'keyevent' if len(keys) == 1 else 'keycombination'} {' '.join(keys)}"


def _typing(text: str, adb_keyboard: bool) -> list[str]:
    """What puts `text` in the place of the focused field's content."""
    if reason := untypeable(text, lines=True):
        raise NotPossible(reason)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    clear = [_SELECT_ALL, "input keyevent KEYCODE_DEL"]
    if all(" " <= character <= "~" or character in "\n\t" for character in text):
        return [*clear, *(step for piece in re.findall(r"\n|\t|[^\n\t]+", text) for step in _plain(piece))]
    if not adb_keyboard:
        raise NotPossible("nothing was typed: this phone's keyboard has the characters of ASCII only")
    encoded = base64.b64encode(text.encode()).decode()
    return [*clear, f"am broadcast -a ADB_INPUT_B64 --es msg {encoded}"]


def _plain(piece: str) -> list[str]:
    """`input text` reads %s as a blank, and has no word for a percent sign before an s: they are typed one by one."""
    if piece in "\n\t":
        return [_ENTER if piece == "\n" else "input keyevent KEYCODE_TAB"]
    parts = re.split(r"(?<=%)(?=s)", piece)
    return [f"input text {shlex.quote(part.replace(' ', '%s'))}" for part in parts]
