"""Typed actions: what an agent can do to a screen, independent of any model or device.

Positions are normalised to 0-1000 in both directions, so that an action means the same on every screen size,
whatever scale a model writes in. A location is either a `Point` or a `Target`, the visible name
of an element; targets are turned into points by the environment's `locate` before the action is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

COORDINATE_MAX = 1000
"""Largest normalised coordinate; (0, 0) is the top left corner, (1000, 1000) the bottom right one."""

Coordinates = Literal["relative", "absolute"]
"""How a model writes positions: `relative`, 0 to 1000 in both directions; `absolute`, pixels of the image that it is
shown after its processor has resized it."""

Space = tuple[int, int]
"""(width, height) in pixels of the resized image that absolute positions are measured in."""


@dataclass(frozen=True)
class Point:
    """A position on the screen, normalised: `x` and `y` in 0..1000."""

    x: int
    y: int

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            if not 0 <= value <= COORDINATE_MAX:
                raise ValueError(f"{name}={value} is outside 0..{COORDINATE_MAX}")

    def to_pixels(self, width: int, height: int) -> tuple[int, int]:
        """The pixel (column, row) of this point on a screen of `width` x `height` pixels."""
        last = COORDINATE_MAX + 1
        return self.x * width // last, self.y * height // last

    @classmethod
    def at_pixel(cls, x: int, y: int, width: int, height: int) -> Point:
        """The middle of a pixel; `to_pixels` gives the same pixel back on screens of up to 1001 pixels each way."""
        return cls(*((2 * pixel + 1) * (COORDINATE_MAX + 1) // (2 * size) for pixel, size in ((x, width), (y, height))))


@dataclass(frozen=True)
class Target:
    """An element named by what a person would call it, for example ``Wi-Fi`` or ``OK``."""

    name: str


Location = Point | Target


class Direction(StrEnum):
    """Where the finger (swipe) or the view (scroll) moves; scrolling `DOWN` reveals what is further down."""

    UP = "up"
    DOWN = "down"
    LEFT = "left"
    RIGHT = "right"

    @property
    def unit(self) -> tuple[int, int]:
        """One step this way on the screen, across and down."""
        return {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}[self]


class Button(StrEnum):
    """Hardware and navigation buttons of a phone."""

    BACK = "back"
    HOME = "home"
    MENU = "menu"
    APP_SWITCH = "app_switch"
    POWER = "power"
    VOLUME_UP = "volume_up"
    VOLUME_DOWN = "volume_down"


@dataclass(frozen=True)
class Tap:
    """Touch a place shortly."""

    at: Location


@dataclass(frozen=True)
class DoubleTap:
    """Touch a place twice in a row."""

    at: Location


@dataclass(frozen=True)
class LongPress:
    """Touch a place and stay on it for some seconds."""

    at: Location
    seconds: float = 1.0


@dataclass(frozen=True)
class TypeText:
    """Type `text` into the focused field, after tapping `at` when given; replaces the field's content.

    It is typed as it is or not at all (`cua_agent.typed_text`)."""

    text: str
    at: Location | None = None
    press_enter: bool = False


@dataclass(frozen=True)
class Swipe:
    """A quick finger movement from `start` to `end`."""

    start: Location
    end: Location


@dataclass(frozen=True)
class Scroll:
    """Move the view at `at` (the screen's centre when None) by about half a screen."""

    direction: Direction
    at: Location | None = None


@dataclass(frozen=True)
class Drag:
    """Press at `start`, move slowly to `end`, release."""

    start: Location
    end: Location


@dataclass(frozen=True)
class PressKey:
    """Press a keyboard key or combination (``enter``, ``control+a``); names are those of `cua_agent.keys`."""

    key: str


@dataclass(frozen=True)
class PressButton:
    """Press a hardware or navigation button."""

    button: Button


@dataclass(frozen=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class ReportTaskComplete:
    """The agent's claim that the task is done; ends the episode."""

    message: str = ""


Action = (
    Tap | DoubleTap | LongPress | TypeText | Swipe | Scroll | Drag | PressKey | PressButton | Wait | ReportTaskComplete
)
