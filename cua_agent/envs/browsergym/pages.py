"""Pages of Playwright's synchronous API, frames included: where an element is, and gestures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from playwright.sync_api import Error as PlaywrightError

from cua_agent.actions import Action, Point
from cua_agent.envs.web.gestures import perform
from cua_agent.envs.web.page import ELEMENTS, point_of

T = TypeVar("T")
_HAS_FOCUS = "() => document.hasFocus() && !(document.activeElement instanceof HTMLIFrameElement)"


def locate(page: Any, target: str) -> Point | None:
    """The point of the visible element called `target`, in whatever frame it is."""
    width, height = size = size_of(page)
    for frame in page.frames:
        try:
            pixel = _ask(frame, "target => cua.locate(target)", target)
            left, top = _corner(frame) if pixel else (0, 0)
        except PlaywrightError:  # a frame that goes, or runs no scripts
            continue
        if pixel and 0 <= left + pixel[0] < width and 0 <= top + pixel[1] < height:
            return point_of(left + pixel[0], top + pixel[1], size)
    return None


def perform_now(page: Any, action: Action) -> None:
    """`perform` on a synchronous page. Raises `ActionRefused`, and Playwright's errors."""
    _finished(perform(_Awaitable(page), action, size_of(page)))


def size_of(page: Any) -> tuple[int, int]:
    """Width and height of the page in CSS pixels."""
    size = page.viewport_size
    return size["width"], size["height"]


class _Awaitable:
    """A synchronous page as `perform` knows it: every call is over when it is awaited."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self.mouse = _Awaited(page.mouse)
        self.keyboard = _Awaited(page.keyboard)

    async def evaluate(self, expression: str) -> Any:
        """In the frame that has the focus: what is typed arrives there."""
        focused = [frame for frame in self._page.frames if _has_focus(frame)]
        return _ask((focused or [self._page.main_frame])[-1], expression)

    async def wait_for_timeout(self, milliseconds: float) -> None:
        self._page.wait_for_timeout(milliseconds)


class _Awaited:
    def __init__(self, device: Any) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._device, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        return call


def _finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("it waits for an event loop")


def _ask(frame: Any, expression: str, argument: Any = None) -> Any:
    """JavaScript that uses `cua`, which is defined where it is not yet."""
    if not frame.evaluate("() => Boolean(window.cua)"):
        frame.evaluate(ELEMENTS)
    return frame.evaluate(expression, argument)


def _has_focus(frame: Any) -> bool:
    try:
        return bool(frame.evaluate(_HAS_FOCUS))
    except PlaywrightError:
        return False


def _corner(frame: Any) -> tuple[int, int]:
    """Where a frame begins on the page, in CSS pixels."""
    if frame.parent_frame is None:
        return 0, 0
    box = frame.frame_element().bounding_box()
    return (round(box["x"]), round(box["y"])) if box else (-1_000_000, 0)
