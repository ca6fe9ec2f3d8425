"""Typed actions as mouse and keyboard input of a Playwright page."""

from __future__ import annotations

from typing import Any

from cua_agent import actions
from cua_agent.actions import Action, Location, Point
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import untypeable

MAX_WAIT_S = 3.0
"""Longest wait or press that is honoured: no task needs more, and the environment's time-out must not strike."""

_MAX_KEYSTROKES = 200  # longer texts are inserted at once: a keystroke costs a round trip to the browser
_SHOWN = 60  # characters of a field's content that an error repeats
_DRAG_STEPS = 5
_KEYS = named(
    (
        *("Enter", "Tab", "Escape", "Backspace", "Delete", "Insert", "Home", "End", "PageUp", "PageDown", "Space"),
        *("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Control", "Shift", "Alt", "Meta"),
        *(f"F{n}" for n in range(1, 13)),
    )
)
_CHARACTERS = "".join(map(chr, range(0x20, 0x7F)))


class ActionRefused(Exception):  # noqa: N818 (a normal event of an episode)
    """The action has no meaning here; the message goes to the agent."""


async def perform(page: Any, action: Action, size: tuple[int, int]) -> None:
    """Carry out `action` on a Playwright page of `size` (width and height in CSS pixels).

    Raises `ActionRefused` when it cannot have an effect.
    """
    match action:
        case actions.Tap(at):
            await page.mouse.click(*_pixel(at, size))
        case actions.DoubleTap(at):
            await page.mouse.dblclick(*_pixel(at, size))
        case actions.LongPress(at, seconds):
            await page.mouse.click(*_pixel(at, size), delay=1000 * _bounded(seconds))
        case actions.TypeText():
            await _type(page, action, size)
        case actions.Swipe(start, end):
            (x, y), (to_x, to_y) = _pixel(start, size), _pixel(end, size)
            await _wheel(page, (x, y), (x - to_x, y - to_y))  # the content follows the finger
        case actions.Scroll(direction, at):
            (across, down), (width, height) = direction.unit, size
            position = (width // 2, height // 2) if at is None else _pixel(at, size)
            await _wheel(page, position, (across * width // 2, down * height // 2))
        case actions.Drag(start, end):
            await _drag(page, _pixel(start, size), _pixel(end, size))
        case actions.PressKey(key):
            await page.keyboard.press(_key(key))
        case actions.PressButton(button):
            raise ActionRefused(f"a web page has no {button.value} button")
        case actions.Wait(seconds):
            await page.wait_for_timeout(1000 * _bounded(seconds))
        case actions.ReportTaskComplete():
            pass


async def _type(page: Any, action: actions.TypeText, size: tuple[int, int]) -> None:
    if action.at is not None:
        await page.mouse.click(*_pixel(action.at, size))
    focused = await page.evaluate("cua.focus()")
    if not focused:
        raise ActionRefused("no text field is focused")
    if reason := untypeable(action.text, lines=focused == "lines"):
        raise ActionRefused(reason)
    text = action.text.replace("\r\n", "\n").replace("\r", "\n")
    if focused != "select":
        await page.keyboard.press("Control+a")
    if not text:
        await page.keyboard.press("Delete")
    elif len(text) > _MAX_KEYSTROKES:
        await page.keyboard.insert_text(text)
    else:
        await _keystrokes(page, text)
    held = await page.evaluate("cua.held()")
    if focused != "select" and held not in (None, text):
        raise ActionRefused(f"the field did not take the text as it is; it holds {held[:_SHOWN]!r}")
    if action.press_enter:
        await page.keyboard.press("Enter")


async def _keystrokes(page: Any, text: str) -> None:
    """Type `text` key by key; the tab key would leave the field, so that a tab is inserted."""
    for index, piece in enumerate(text.split("\t")):
        if index:
            await page.keyboard.insert_text("\t")
        await page.keyboard.type(piece)


async def _wheel(page: Any, position: tuple[int, int], delta: tuple[int, int]) -> None:
    await page.mouse.move(*position)
    await page.mouse.wheel(*delta)
    # The browser acknowledges the event before it scrolls, at the next frame.
    await page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


async def _drag(page: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    await page.mouse.move(*start)
    await page.mouse.down()
    await page.mouse.move(*end, steps=_DRAG_STEPS)
    await page.mouse.up()


def _pixel(at: Location, size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(at, Point):
        raise TypeError(f"{at!r} was not grounded: the environment executes points only")
    return at.to_pixels(*size)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_WAIT_S)


def _key(combination: str) -> str:
    """Playwright's name of a combination such as ``control+a``. Raises `ActionRefused` for an unknown key."""
    try:
        return "+".join(keys_of(combination, _KEYS, _CHARACTERS))
    except UnknownKey as unknown:
        raise ActionRefused(str(unknown)) from None
