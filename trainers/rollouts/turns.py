"""In what order several worlds, and the categories of each, take turns: pure functions of the position."""

from __future__ import annotations

from collections.abc import Sequence

from cua_agent.tasks import CUATask, world_of


class WorldTurns:
    """Whose turn it is at each position of an endless sequence. Each world gets its share in any window, to within one
    turn: the next is always the one that is furthest behind. With one world it is always its turn."""

    def __init__(self, tasks: Sequence[CUATask]) -> None:
        shares = {world_of(task.id): task.share for task in tasks}
        total = sum(shares.values())
        self._shares = {world: shares[world] / total for world in sorted(shares)}
        self._counts = dict.fromkeys(self._shares, 0)
        self._drawn: list[tuple[str, int]] = []

    def at(self, index: int) -> tuple[str, int]:
        """The world at position `index`, and how many turns it had before."""
        if len(self._shares) == 1:
            return next(iter(self._shares)), index
        while len(self._drawn) <= index:
            due = len(self._drawn) + 1
            world = max(self._shares, key=lambda world: self._shares[world] * due - self._counts[world])
            self._drawn.append((world, self._counts[world]))
            self._counts[world] += 1
        return self._drawn[index]


def by_category(tasks: Sequence[CUATask]) -> dict[str, dict[str, list[CUATask]]]:
    """The tasks of each category, by world."""
    found: dict[str, dict[str, list[CUATask]]] = {}
    for task in tasks:
        found.setdefault(world_of(task.id), {}).setdefault(task.category, []).append(task)
    return found
