"""The staleness rule: how many groups may be started, and which ones a step trains on, so that none gets too old.

Versions and groups are plain numbers here; nothing is played. A group's `start` is the policy version at which it
began: none of its tokens is older. An update of version v trains on tokens that are at most v - start versions old, and
the next update's version is at most v + 1. A step has `places` groups, and `bound` is the largest age allowed.

What keeps the bound, whatever finishes when: after every batch of version v, and for every k = 0..bound, at most
k * places groups are outstanding (running or ready) that started at version v - bound + k or before. They are those
that the next k batches have to take. It holds again one version later, because a batch takes one `places` of them and
new groups are started only as far as all of them fit into bound + 1 batches. Nothing weaker will do: were there one
more, and all of them carried signal, one would come too late (a schedule meets its deadlines if and only if, up to each
of them, no more is due than can be done).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HandOut:
    """A batch: the groups to train on, in the order of their numbers, and how many of its places stay empty. Places of
    `dropped` groups, which no batch can take in time, are among the empty ones."""

    groups: tuple[int, ...]
    dropped: tuple[int, ...]
    empty: int


def may_start(outstanding: int, empty: int, *, bound: int, places: int) -> int:
    """How many groups may be started at one version, with so many `outstanding` (running or ready) and so many places
    to stay `empty`."""
    return (bound + 1) * places - outstanding - empty


def holds(starts: Collection[int], version: int, *, bound: int, places: int) -> bool:
    """Whether groups outstanding after the batch of `version` can all be trained in time."""
    return all(_started_by(starts, version - bound + k) <= k * places for k in range(bound + 1))


def is_too_old(start: int, version: int, *, bound: int) -> bool:
    """Whether a group can't be trained on any more by an update of `version`. Under the rule none gets there; one may
    when versions were published without a batch between them."""
    return start < version - bound


def hand_out(
    running: Collection[int],
    ready: Mapping[int, int],
    empty: int,
    version: int,
    *,
    bound: int,
    places: int,
    multiple: int = 1,
) -> HandOut | None:
    """The batch of `version`, or None when it has to wait for a running group.

    `running` holds the starts of running groups, `version` for one that has not begun; `ready` maps the number of each
    ready group, none of which is too old, to its start; `empty` of the window's places stay empty. Earliest start first
    go the groups that the rule needs, then empty places, then other groups. The batch has a multiple of `multiple`
    groups, which divides `places`; what is left over then is dropped once nothing else can come.
    """
    needed = _needed(running, ready.values(), version, bound, places)
    if needed is None:
        return None
    least = max(needed, places - empty)
    size = -(-least // multiple) * multiple
    if size > len(ready):
        if running:
            return None
        size = len(ready) // multiple * multiple
    earliest = sorted(ready, key=lambda number: (ready[number], number))
    return HandOut(tuple(sorted(earliest[:size])), tuple(sorted(earliest[size:least])), places - size)


def _needed(running: Iterable[int], ready: Collection[int], version: int, bound: int, places: int) -> int | None:
    """How many ready groups the batch must take, those that started first; None when running ones are needed."""
    alive = [version if is_too_old(start, version, bound=bound) else start for start in running]
    needed = 0
    for k in range(bound + 1):
        still = _started_by(alive, version - bound + k)
        if still > k * places:
            return None
        needed = max(needed, still + _started_by(ready, version - bound + k) - k * places)
    return min(needed, places)


def _started_by(starts: Iterable[int], version: int) -> int:
    return sum(start <= version for start in starts)
