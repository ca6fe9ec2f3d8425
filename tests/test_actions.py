"""Coordinates that mean the same on every screen, and actions that are values."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.actions import COORDINATE_MAX, Direction, LongPress, Point, Scroll, Tap, Target, TypeText

SIZES = st.integers(1, 4000)
COORDINATES = st.integers(0, COORDINATE_MAX)


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (1001, 0), (0, -1), (0, 1001), (10**9, 0)])
def test_a_point_outside_the_screen_cannot_be_constructed(x: int, y: int) -> None:
    name, value = ("x", x) if not 0 <= x <= 1000 else ("y", y)
    with pytest.raises(ValueError, match=re.escape(f"{name}={value} is outside 0..1000")):
        Point(x, y)


@pytest.mark.parametrize(
    ("point", "pixel"),
    [
        (Point(0, 0), (0, 0)),
        (Point(1000, 1000), (127, 223)),
        (Point(500, 500), (63, 111)),  # 500 / 1001 of 128 and of 224
        (Point(7, 4), (0, 0)),
        (Point(8, 5), (1, 1)),
    ],
)
def test_pixels_by_hand(point: Point, pixel: tuple[int, int]) -> None:
    assert point.to_pixels(128, 224) == pixel


@given(x=COORDINATES, y=COORDINATES, width=SIZES, height=SIZES)
def test_every_point_is_a_pixel_of_the_screen(x: int, y: int, width: int, height: int) -> None:
    column, row = Point(x, y).to_pixels(width, height)
    assert 0 <= column < width
    assert 0 <= row < height


@given(first=COORDINATES, second=COORDINATES, width=SIZES)
def test_order_is_kept(first: int, second: int, width: int) -> None:
    left, right = sorted((first, second))
    assert Point(left, 0).to_pixels(width, 1) <= Point(right, 0).to_pixels(width, 1)


@given(width=st.integers(1, COORDINATE_MAX + 1))
def test_every_pixel_of_a_screen_up_to_1001_wide_can_be_reached(width: int) -> None:
    columns = {Point(x, 0).to_pixels(width, 1)[0] for x in range(COORDINATE_MAX + 1)}
    assert columns == set(range(width))


def test_actions_are_values() -> None:
    assert Tap(Target("OK")) == Tap(Target("OK")) != Tap(Target("ok"))
    assert len({Tap(Point(1, 2)), Tap(Point(1, 2)), Scroll(Direction.UP)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tap(Point(1, 2)).at = Point(3, 4)  # type: ignore[misc]


def test_what_is_left_out_is_harmless() -> None:
    assert (TypeText("x").at, TypeText("x").press_enter) == (None, False)
    assert Scroll(Direction.DOWN).at is None
    assert LongPress(Target("OK")).seconds == 1.0
