"""What the agent's actions mean to a gymnasium environment: tables of keys and taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cua_agent import actions
from cua_agent.actions import COORDINATE_MAX, Action, Point
from cua_agent.keys import canonical, keys_of

_SHOWN = 20

Grid = Sequence[Sequence[str | None]]
"""The screen in rows of cells of equal size, each with the name of the action that a tap there is, or None."""


class NoMeaning(Exception):  # noqa: N818 (a normal event of an episode)
    """The action means nothing to the environment; the message goes to the agent."""


@dataclass(frozen=True)
class Tables:
    """`presses` (by key) and the cells of `taps` name entries of `actions`, which are the environment's own values;
    `wait` is what happens when the agent waits, None: nothing."""

    actions: Mapping[str, Any]
    presses: Mapping[str, str]
    taps: Grid
    wait: str | None = None

    def __call__(self, action: Action) -> Any:
        """The environment's action, None where it is to stay as it is. Raises `NoMeaning`."""
        match action:
            case actions.PressKey(key):
                return self.actions[self._by_key(key)]
            case actions.Tap(Point() as at) if self.taps:
                return self.actions[self._by_place(at)]
            case actions.Wait():
                return None if self.wait is None else self.actions[self.wait]
        raise NoMeaning(f"{type(action).__name__} means nothing here; allowed: {self.offer()}")

    def locate(self, name: str) -> Point | None:
        """The middle of the first cell of that name; case does not matter."""
        for row, cells in enumerate(self.taps):
            for column, cell in enumerate(cells):
                if cell is not None and cell.casefold() == name.strip().casefold():
                    return Point(_middle(column, len(cells)), _middle(row, len(self.taps)))
        return None

    def offer(self) -> str:
        """What can be done, for people and models."""
        ways = [f"the keys {', '.join(self.presses)}"] if self.presses else []
        return " and ".join([*ways, *(["a tap on the screen"] if self.taps else [])])

    def _by_key(self, written: str) -> str:
        try:
            [key] = keys_of(written, {canonical(key): key for key in self.presses})
        except ValueError:  # there is no such key, or these are several
            raise NoMeaning(f"no key {written.strip()[:_SHOWN]!r} here; allowed: {self.offer()}") from None
        return self.presses[key]

    def _by_place(self, at: Point) -> str:
        cells = self.taps[at.y * len(self.taps) // (COORDINATE_MAX + 1)]
        name = cells[at.x * len(cells) // (COORDINATE_MAX + 1)]
        if name is None:
            raise NoMeaning("a tap there does nothing")
        return name


def _middle(index: int, count: int) -> int:
    return (2 * index + 1) * (COORDINATE_MAX + 1) // (2 * count)
