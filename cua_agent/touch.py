"""What stood where an action acted: for people who look at an episode, never for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cua_agent.actions import COORDINATE_MAX

_STEPS = COORDINATE_MAX + 1


@dataclass(frozen=True)
class Place:
    """A thing on the screen that can be touched: its name, and the normalised positions (0..1000, both ends included)
    that are on it."""

    name: str
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of_pixels(cls, name: str, box: tuple[int, int, int, int], width: int, height: int) -> Place:
        """From a box of pixels (x0, y0, x1, y1, the end excluded) of a screen: those points that `Point.to_pixels` puts
        into it."""
        x0, y0, x1, y1 = box
        return cls(name, _first(x0, width), _first(y0, height), _first(x1, width) - 1, _first(y1, height) - 1)


NEAR = 3
"""Places that are told of a touch."""


@dataclass(frozen=True)
class Touch:
    """A place near a point that was touched, and how far right of it and below it that was (normalised; negative: left,
    above; 0 and 0: on it)."""

    place: Place
    right: int
    below: int


def touched(places: Sequence[Place], point: tuple[int, int]) -> tuple[Touch, ...]:
    """The `NEAR` places nearest to `point`, the nearest first; of several that hold the point the one that comes first
    in `places`."""
    x, y = point
    found = [Touch(each, _beyond(x, each.left, each.right), _beyond(y, each.top, each.bottom)) for each in places]
    return tuple(sorted(found, key=lambda touch: touch.right**2 + touch.below**2)[:NEAR])


def _first(pixel: int, size: int) -> int:
    """The least normalised position at or beyond a pixel."""
    return -(-pixel * _STEPS // size)


def _beyond(value: int, low: int, high: int) -> int:
    return min(0, value - low) + max(0, value - high)
