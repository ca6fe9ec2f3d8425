"""In what order several worlds, and the categories of each, take turns: pure functions of the position."""

from __future__ import annotations

from collections.abc import Sequence

from cua_agent.tasks import CUATask, world_of

_ROUNDING = 1e-9


class WorldTurns:
    """Whose turn it is at each position of an endless sequence. After any number of turns each world has had its share
    of them to within one turn (Tijdeman, The chairman assignment problem, 1980). With one world it is always its turn.
    """

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
            world = self._next()
            self._drawn.append((world, self._counts[world]))
            self._counts[world] += 1
        return self._drawn[index]

    def _next(self) -> str:
        """Of the worlds that are behind far enough, the one that would soonest be a whole turn behind."""
        due, least = len(self._drawn) + 1, 1 / (2 * len(self._shares) - 2)
        behind = {world: share * due - self._counts[world] for world, share in self._shares.items()}
        waiting = [world for world in behind if behind[world] >= least - _ROUNDING]
        return min(waiting, key=lambda world: (1 - least - behind[world]) / self._shares[world])


def by_category(tasks: Sequence[CUATask]) -> dict[str, dict[str, list[CUATask]]]:
    """The tasks of each category, by world."""
    found: dict[str, dict[str, list[CUATask]]] = {}
    for task in tasks:
        found.setdefault(world_of(task.id), {}).setdefault(task.category, []).append(task)
    return found
