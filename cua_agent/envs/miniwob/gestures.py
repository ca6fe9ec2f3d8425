"""Typed actions as mouse and keyboard input of a Playwright page."""

from __future__ import annotations

import asyncio
from typing import Any

from cua_agent import actions
from cua_agent.actions import Action, Direction, Location, Point
from cua_agent.envs.miniwob.page import HEIGHT, WIDTH

MAX_WAIT_S = 3.0
"""Longest wait or press that is honoured: no task needs more, and the environment's time-out must not strike."""

_MAX_KEYSTROKES = 200  # longer texts are inserted at once: a keystroke costs a round trip to the browser
_DRAG_STEPS = 5
_WHEEL = {Direction.UP: (0, -1), Direction.DOWN: (0, 1), Direction.LEFT: (-1, 0), Direction.RIGHT: (1, 0)}
_KEYS = {
    **{name.lower(): name for name in ("Enter", "Tab", "Escape", "Backspace", "Delete", "Insert", "Home", "End")},
    **{name.lower(): name for name in ("PageUp", "PageDown", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")},
    **{name.lower(): name for name in ("Control", "Shift", "Alt", "Meta")},
    **{f"f{n}": f"F{n}" for n in range(1, 13)},
    **{"esc": "Escape", "ctrl": "Control", "return": "Enter", "space": "Space"},
    **{"up": "ArrowUp", "down": "ArrowDown", "left": "ArrowLeft", "right": "ArrowRight"},
}


class ActionRefused(Exception):  # noqa: N818 (a normal event of an episode)
    """The action has no meaning here; the message goes to the agent."""


async def perform(page: Any, action: Action) -> None:
    """Carry out `action` on a Playwright page. Raises `ActionRefused` when it cannot have an effect."""
    match action:
        case actions.Tap(at):
            await page.mouse.click(*_pixel(at))
        case actions.DoubleTap(at):
            await page.mouse.dblclick(*_pixel(at))
        case actions.LongPress(at, seconds):
            await page.mouse.click(*_pixel(at), delay=1000 * _bounded(seconds))
        case actions.TypeText():
            await _type(page, action)
        case actions.Swipe(start, end):
            (x, y), (to_x, to_y) = _pixel(start), _pixel(end)
            await _wheel(page, (x, y), (x - to_x, y - to_y))  # the content follows the finger
        case actions.Scroll(direction, at):
            across, down = _WHEEL[direction]
            position = (WIDTH // 2, HEIGHT // 2) if at is None else _pixel(at)
            await _wheel(page, position, (across * WIDTH // 2, down * HEIGHT // 2))
        case actions.Drag(start, end):
            await _drag(page, _pixel(start), _pixel(end))
        case actions.PressKey(key):
            await page.keyboard.press(_key(key))
        case actions.PressButton(button):
            raise ActionRefused(f"a web page has no {button.value} button")
        case actions.Wait(seconds):
            await asyncio.sleep(_bounded(seconds))
        case actions.ReportTaskComplete():
            pass


async def _type(page: Any, action: actions.TypeText) -> None:
    if action.at is not None:
        await page.mouse.click(*_pixel(action.at))
    focused = await page.evaluate("cua.focused()")
    if not focused:
        raise ActionRefused("no text field is focused")
    if focused == "text":
        await page.keyboard.press("Control+a")
    text = action.text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be sent
    if not text:
        await page.keyboard.press("Delete")
    elif len(text) > _MAX_KEYSTROKES:
        await page.keyboard.insert_text(text)
    else:
        await page.keyboard.type(text)
    if action.press_enter:
        await page.keyboard.press("Enter")


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


def _pixel(at: Location) -> tuple[int, int]:
    if not isinstance(at, Point):
        raise TypeError(f"{at!r} was not grounded: the environment executes points only")
    return at.to_pixels(WIDTH, HEIGHT)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_WAIT_S)


def _key(combination: str) -> str:
    """Playwright's name of a combination such as ``control+a``. Raises `ActionRefused` for an unknown key."""
    names = [name.strip() for name in combination.split("+")] if len(combination) > 1 else [combination]
    for name in names:
        if name.lower() not in _KEYS and not (len(name) == 1 and name.isascii() and name.isprintable()):
            raise ActionRefused(f"unknown key {combination[:40]!r}")
    return "+".join(_KEYS.get(name.lower(), name) for name in names)
