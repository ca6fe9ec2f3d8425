"""Rollouts of a crew: each process plays its share in its own engine, all learn what all have played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cua_agent.trajectory import Trajectory
from trainers.crew import Crew
from trainers.rollouts import Collected, EpisodePlayer, EpisodeSpec, OnDone, Played, Rollouts, Usage

T = TypeVar("T")


class SharedPlayer:
    """Implements `EpisodePlayer`: of `specs`, every process plays every `size`-th. Results come without images."""

    def __init__(self, own: EpisodePlayer, crew: Crew) -> None:
        self._own = own
        self._crew = crew

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        crew = self._crew
        mine = specs[crew.rank :: crew.size]
        report = crew.interruptible(on_done)
        parts = crew.do(lambda: [without_pixels(played) for played in self._own.play(mine, report)] if mine else [])
        return in_order(parts)


class SharedRollouts:
    """Implements `Rollouts` over those of every process. `position` counts the training sequence of all."""

    def __init__(self, own: Rollouts, crew: Crew) -> None:
        self._own = own
        self._crew = crew
        self._player = SharedPlayer(own, crew)
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def collect(self, on_done: OnDone) -> tuple[Collected, Usage]:
        report = self._crew.interruptible(on_done)
        collected, usage, self._position = collect_together(
            self._crew, lambda: self._own.collect(report), lambda: self._own.position
        )
        return collected, usage

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        return self._player.play(specs, on_done)

    def publish(self, version: int) -> None:
        self._own.publish(version)

    def restore(self, version: int, position: int) -> None:
        self._own.restore(version, own_position(position, self._crew))
        self._position = position

    def close(self) -> None:
        self._own.close()


def collect_together(
    crew: Crew, collect: Callable[[], tuple[Collected, Usage]], position: Callable[[], int]
) -> tuple[Collected, Usage, int]:
    """What all processes collected, in the order of the training sequence; the longest wait and the summed use; and
    the position in the sequence of all, when each has come to its own `position`."""
    parts = crew.do(lambda: (*collect(), position()))
    collected = Collected()
    for part, _, _ in parts:
        collected.kept += part.kept
        collected.filtered += part.filtered
        collected.lost += part.lost
    collected.kept.sort(key=lambda group: group.spec.group_id)
    usages = [usage for _, usage, _ in parts]
    usage = replace(sum(usages, Usage()), wall_s=max(usage.wall_s for usage in usages))
    return collected, usage, crew.size * max(own for _, _, own in parts)


def own_position(position: int, crew: Crew) -> int:
    """How many of the first `position` groups of the training sequence belong to this process: every `size`-th does."""
    return -(-(position - crew.rank) // crew.size)


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """Things that were dealt out one by one, to each share in turn, as they were before."""
    count = sum(map(len, shares))
    return [shares[index % len(shares)][index // len(shares)] for index in range(count)]


def without_pixels(played: Played) -> Played:
    """What can be sent to another process at little cost."""
    return played if played.rows is None else replace(played, rows=[row_without_pixels(row) for row in played.rows])


def row_without_pixels(row: Trajectory) -> Trajectory:
    return replace(row, images=[], turns=tuple(replace(turn, screenshot=None) for turn in row.turns))
