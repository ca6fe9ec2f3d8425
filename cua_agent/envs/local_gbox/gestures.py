"""From a request's body to what the phone can do."""

from __future__ import annotations

from collections.abc import Iterable

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point
from cua_agent.envs.local_gbox import bodies
from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.phone import Phone
from cua_agent.typed_text import untypeable

_DISTANCES = {"tiny": 0.1, "short": 0.2, "medium": 0.3, "long": 0.45}  # of the screen, along the direction
_TOWARDS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
_TOWARDS |= {"upLeft": (-1, -1), "upRight": (1, -1), "downLeft": (-1, 1), "downRight": (1, 1)}
# A direction is where the content moves: up reveals what is below.
_REVEALS = {"up": Direction.DOWN, "down": Direction.UP, "left": Direction.RIGHT, "right": Direction.LEFT}
_BUTTONS = {
    "power": Button.POWER,
    "volumeUp": Button.VOLUME_UP,
    "volumeDown": Button.VOLUME_DOWN,
    "home": Button.HOME,
    "back": Button.BACK,
    "menu": Button.MENU,
    "appSwitch": Button.APP_SWITCH,
}


def actions_of(body: bodies.ActionBody, phone: Phone) -> list[Action]:
    """What the phone does for a request; empty when it has no use for it (a mouse move, a right click, a mute).

    Raises `ApiError` when a place is outside the screen, a target is not on it, or a text cannot be typed.
    """
    match body:
        case bodies.ClickAt() | bodies.ClickTarget():
            at = _place(body, phone)
            return [] if body.button != "left" else [actions.DoubleTap(at) if body.double else actions.Tap(at)]
        case bodies.LongPressAt() | bodies.LongPressTarget():
            return [actions.LongPress(_place(body, phone), body.duration)]
        case bodies.TapAt() | bodies.TapTarget():
            return [actions.Tap(_place(body, phone))]
        case bodies.Move():
            phone.point(body.x, body.y)
            return []
        case bodies.Type():
            return [actions.TypeText(_typed(body, phone), press_enter=body.press_enter)]
        case bodies.SwipeTowards():
            return [_swipe_towards(body, phone)]
        case bodies.SwipeBetween():
            return [actions.Swipe(_spot(body.start, phone), _spot(body.end, phone))]
        case bodies.DragBetween():
            return [actions.Drag(_spot(body.start, phone), _spot(body.end, phone))]
        case bodies.DragAlong():
            path = [_spot(spot, phone) for spot in body.path]
            return [actions.Drag(path[0], path[-1])]
        case bodies.ScrollBy() | bodies.ScrollTowards():
            return _scroll(body, phone)
        case bodies.PressKey():
            names = ["+".join(body.keys)] if body.combination else body.keys
            return [actions.PressKey(name) for name in names]
        case bodies.PressButton():
            return [actions.PressButton(_BUTTONS[button]) for button in body.buttons if button in _BUTTONS]
    raise TypeError(f"no gesture for {type(body).__name__}")


def places_of(performed: Iterable[Action]) -> list[Point]:
    """Every point that the actions touch, in order; for drawing their trace."""
    places = [getattr(action, name, None) for action in performed for name in ("at", "start", "end")]
    return [place for place in places if isinstance(place, Point)]


def _place(body: bodies.TapAt | bodies.TapTarget, phone: Phone) -> Point:
    if isinstance(body, bodies.TapAt):
        return phone.point(body.x, body.y)
    if isinstance(body.target, bodies.DetectedElement):
        return phone.point(body.target.center_x, body.target.center_y)
    return phone.locate(body.target)


def _spot(place: bodies.Place, phone: Phone) -> Point:
    return phone.locate(place) if isinstance(place, str) else phone.point(place.x, place.y)


def _typed(body: bodies.Type, phone: Phone) -> str:
    """The field's content afterwards."""
    focus = phone.state.focus
    kept = phone.state.draft.get(focus, "") if focus and body.mode == "append" else ""
    if focus and (reason := untypeable(kept + body.text, lines=False)):
        raise ApiError(400, reason)
    return kept + body.text


def _swipe_towards(body: bodies.SwipeTowards, phone: Phone) -> actions.Swipe:
    width, height = phone.view_size
    start = phone.locate(body.location) if body.location else phone.point(width // 2, height // 2)
    x, y = start.to_pixels(width, height)
    dx, dy = _TOWARDS[body.direction]
    across, along = _reach(body.distance, width), _reach(body.distance, height)
    end = phone.point(_within(x + dx * across, width), _within(y + dy * along, height))
    return actions.Swipe(start, end)


def _reach(distance: bodies.Distance | None, size: int) -> float:
    """Pixels that a movement covers on a screen of `size` pixels; to the edge when it is not said."""
    if distance is None:
        return size
    return _DISTANCES[distance] * size if isinstance(distance, str) else distance


def _within(pixel: float, size: int) -> float:
    return min(max(pixel, 0), size - 1)


def _scroll(body: bodies.ScrollBy | bodies.ScrollTowards, phone: Phone) -> list[Action]:
    """The phone scrolls by its own step, whatever the distance."""
    if isinstance(body, bodies.ScrollTowards):
        return [actions.Scroll(_REVEALS[body.direction], phone.locate(body.location) if body.location else None)]
    at = phone.point(body.x, body.y)
    if body.scroll_x == body.scroll_y == 0:
        return []
    if abs(body.scroll_y) >= abs(body.scroll_x):
        return [actions.Scroll(Direction.DOWN if body.scroll_y > 0 else Direction.UP, at)]
    return [actions.Scroll(Direction.RIGHT if body.scroll_x > 0 else Direction.LEFT, at)]
