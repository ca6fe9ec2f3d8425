"""Who of several processes trains on what: every process knows the whole batch and takes its share of it.

AReaL's own distribution asks for as many groups, and rows a group, on every process, which groups of episodes do not
have. FSDP asks for as many forward passes on every process; so all get as many rows, some of which may be fillers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cua_agent.trajectory import Trajectory
from trainers.crew import Crew
from trainers.grpo.batching import Row


def own_rows(rows: Sequence[Row], crew: Crew) -> list[Row]:
    """This process's share of `rows`, filled up with rows that train on nothing.

    Raises `ValueError` when some rows have images and others have none.
    """
    if crew.size == 1:
        return list(rows)
    check_images([row.trajectory for row in rows])
    hands = deal([len(row.trajectory) for row in rows], crew.size)
    own = [rows[index] for index in hands[crew.rank]]
    missing = max(len(hand) for hand in hands) - len(own)
    return own + [Row(filler([row.trajectory for row in rows]), 0.0, 0.0)] * missing


def own_groups(groups: Sequence[Sequence[Trajectory]], crew: Crew) -> list[Sequence[Trajectory]]:
    """This process's share of `groups` (the rows of each), filled up with a group that trains on nothing.

    Raises `ValueError` as `own_rows`.
    """
    if crew.size == 1:
        return list(groups)
    rows = [row for group in groups for row in group]
    check_images(rows)
    hands = deal([sum(len(row) for row in group) for group in groups], crew.size)
    counts = [sum(len(groups[index]) for index in hand) for hand in hands]
    own = [groups[index] for index in hands[crew.rank]]
    missing = max(counts) - counts[crew.rank]
    return [*own, [filler(rows)] * missing] if missing else own


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of `lengths` in `hands` hands: sizes within one of each other, sums near each other."""
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for place, index in enumerate(longest_first):
        lap, seat = divmod(place, hands)
        dealt[seat if lap % 2 == 0 else hands - 1 - seat].append(index)
    return [sorted(hand) for hand in dealt]


def filler(rows: Sequence[Trajectory]) -> Trajectory:
    """The shortest of `rows`, with nothing to train on."""
    row = min(rows, key=len)
    return replace(row, loss_mask=np.zeros_like(row.loss_mask), logprobs=np.zeros_like(row.logprobs), reward=0.0)


def check_images(rows: Sequence[Trajectory]) -> None:
    """Raise `ValueError` unless all rows have images, or none: the vision tower is sharded, and waits for all."""
    without = [row.episode_id for row in rows if not row.images]
    if without and len(without) < len(rows):
        raise ValueError(
            f"episode {without[0]!r} has no image and others have: several processes cannot train on them together"
        )
