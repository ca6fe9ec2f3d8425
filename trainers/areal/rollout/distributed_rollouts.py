"""Rollouts of a process_group: each process plays its share in its own engine, all learn what all have played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cua_agent.trajectory import Trajectory
from trainers.distributed.process_group import ProcessGroup
from trainers.protocol import Collected, EpisodePlayer, EpisodeSpec, OnCollecting, OnDone, Played, Rollouts, Usage

T = TypeVar("T")


class DistributedPlayer:
    """Implements `EpisodePlayer`: of `specs`, every process plays every `size`-th. Results come without images."""

    def __init__(self, own: EpisodePlayer, process_group: ProcessGroup) -> None:
        self._own = own
        self._process_group = process_group

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        process_group = self._process_group
        mine = specs[process_group.rank :: process_group.size]
        report = process_group.interruptible(on_done)
        parts = process_group.run_on_all(
            lambda: [without_pixels(played) for played in self._own.play(mine, report)] if mine else []
        )
        return in_order(parts)


class DistributedRollouts:
    """Implements `Rollouts` over those of every process. `position` counts the training sequence of all."""

    def __init__(self, own: Rollouts, process_group: ProcessGroup) -> None:
        self._own = own
        self._process_group = process_group
        self._player = DistributedPlayer(own, process_group)
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, Usage]:
        report = self._process_group.interruptible(on_collecting)
        collected, usage, self._position = collect_on_all(
            self._process_group, lambda: self._own.collect(report), lambda: self._own.position
        )
        return collected, usage

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        return self._player.play(specs, on_done)

    def publish(self, version: int) -> None:
        self._own.publish(version)

    def restore(self, version: int, position: int) -> None:
        self._own.restore(version, position_of_rank(position, self._process_group))
        self._position = position

    def close(self) -> None:
        self._own.close()


def collect_on_all(
    process_group: ProcessGroup, collect: Callable[[], tuple[Collected, Usage]], position: Callable[[], int]
) -> tuple[Collected, Usage, int]:
    """What all processes collected, in the order of the training sequence; the longest wait and the summed use; and
    the position in the sequence of all, when each has come to its own `position`."""
    parts = process_group.run_on_all(lambda: (*collect(), position()))
    collected = Collected()
    for part, _, _ in parts:
        collected.kept += part.kept
        collected.filtered += part.filtered
        collected.lost += part.lost
        collected.dropped += part.dropped
    collected.kept.sort(key=lambda group: group.spec.group_id)
    usages = [usage for _, usage, _ in parts]
    usage = replace(sum(usages, Usage()), wall_s=max(usage.wall_s for usage in usages))
    return collected, usage, process_group.size * max(own for _, _, own in parts)


def position_of_rank(position: int, process_group: ProcessGroup) -> int:
    """How many of the first `position` groups of the training sequence belong to this process: every `size`-th does."""
    return -(-(position - process_group.rank) // process_group.size)


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """Things that were dealt out one by one, to each share in turn, as they were before."""
    count = sum(map(len, shares))
    return [shares[index % len(shares)][index // len(shares)] for index in range(count)]


def without_pixels(played: Played) -> Played:
    """What can be sent to another process at little cost."""
    return played if played.rows is None else replace(played, rows=[row_without_pixels(row) for row in played.rows])


def row_without_pixels(row: Trajectory) -> Trajectory:
    """A row that can be sent to another process at little cost."""
    return replace(row, images=[], turns=tuple(replace(turn, screenshot=None) for turn in row.turns))
