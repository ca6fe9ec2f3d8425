"""The device of a box: a pocket phone whose screen is looked at through a scale."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from cua_agent.actions import Action, Point
from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH, elements, find_element
from cua_agent.envs.pocket.state import Layout, PhoneState, make_state

MAX_PIXEL_SCALE = 8


@dataclass
class Phone:
    """A phone in the start state of a seed.

    `pixel_scale` is the size of its real screen (128 x 224 pixels times this), `view_scale` the box's setting that
    shrinks screenshots and coordinates alike. All coordinates here are pixels of the screenshot.
    """

    seed: int
    layout: Layout
    pixel_scale: int
    view_scale: float = 1.0
    state: PhoneState = field(init=False)

    def __post_init__(self) -> None:
        self.reset(self.seed)

    def reset(self, seed: int, layout: Layout | None = None, pixel_scale: int | None = None) -> None:
        """Go to the start state of a seed; what is not given stays."""
        self.seed, self.layout = seed, layout or self.layout
        self.pixel_scale = pixel_scale or self.pixel_scale
        self.state = make_state(self.seed, self.layout)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the real screen."""
        return WIDTH * self.pixel_scale, HEIGHT * self.pixel_scale

    @property
    def view_size(self) -> tuple[int, int]:
        """Width and height of a screenshot."""
        width, height = self.size
        return round(width * self.view_scale), round(height * self.view_scale)

    def screenshot(self) -> Image.Image:
        """The screen at the scale of the settings."""
        image = draw(self.state, self.pixel_scale)
        return image if image.size == self.view_size else image.resize(self.view_size, Image.Resampling.LANCZOS)

    def point(self, x: float, y: float) -> Point:
        """The place on the screen of a screenshot's pixel. Raises `ApiError` (400) outside of it."""
        width, height = self.view_size
        if not (0 <= x < width and 0 <= y < height):
            raise ApiError(400, f"({x:g}, {y:g}) is outside the screen of {width} x {height} pixels")
        return Point.at_pixel(int(x * WIDTH / width), int(y * HEIGHT / height), WIDTH, HEIGHT)

    def targets(self) -> dict[str, tuple[int, int]]:
        """The screenshot pixel of everything that can be named, by case-folded name."""
        found = {element.name.casefold(): find_element(self.state, element.name) for element in elements(self.state)}
        return {name: self._view_pixel(*element.centre) for name, element in found.items() if element}

    def locate(self, name: str) -> Point:
        """The place of a named element. Raises `ApiError` (400) when there is none."""
        pixel = self.targets().get(name.strip().casefold())
        if pixel is None:
            raise ApiError(400, f"target {name[:80]!r} was not found on the screen")
        return self.point(*pixel)

    def apply(self, action: Action) -> str | None:
        """Execute an action; returns why nothing could happen, or None."""
        return apply_action(self.state, action)

    def _view_pixel(self, x: int, y: int) -> tuple[int, int]:
        """The screenshot pixel at the middle of a logical one."""
        width, height = self.view_size
        return (2 * x + 1) * width // (2 * WIDTH), (2 * y + 1) * height // (2 * HEIGHT)
