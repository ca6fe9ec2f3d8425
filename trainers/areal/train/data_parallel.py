"""Who of several processes trains on what: every process knows the whole batch and takes its share of it.

AReaL's own distribution asks for as many groups, and rows a group, on every process, which groups of episodes do not
have. FSDP asks for as many forward passes on every process; so all get as many rows, some of which may be fillers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from cua_agent.trajectory import Trajectory
from trainers.distributed.process_group import Communicator, ProcessGroup
from trainers.grpo.batching import Row
from trainers.grpo.loss import LossSums


def rows_of_rank(rows: Sequence[Row], process_group: ProcessGroup) -> list[Row]:
    """This process's share of `rows`, filled up with rows that train on nothing.

    Raises `ValueError` when some rows have images and others have none.
    """
    if process_group.size == 1:
        return list(rows)
    check_images([row.trajectory for row in rows])
    hands = deal([len(row.trajectory) for row in rows], process_group.size)
    own = [rows[index] for index in hands[process_group.rank]]
    missing = max(len(hand) for hand in hands) - len(own)
    return own + [Row(filler([row.trajectory for row in rows]), 0.0, 0.0)] * missing


def groups_of_rank(groups: Sequence[Sequence[Trajectory]], process_group: ProcessGroup) -> list[Sequence[Trajectory]]:
    """This process's share of `groups` (the rows of each), filled up with a group that trains on nothing.

    Raises `ValueError` as `rows_of_rank`.
    """
    if process_group.size == 1:
        return list(groups)
    rows = [row for group in groups for row in group]
    check_images(rows)
    hands = deal([sum(len(row) for row in group) for group in groups], process_group.size)
    counts = [sum(len(groups[index]) for index in hand) for hand in hands]
    own = [groups[index] for index in hands[process_group.rank]]
    missing = max(counts) - counts[process_group.rank]
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
    nothing = np.zeros_like(row.loss_mask)
    return replace(row, loss_mask=nothing, logprobs=np.zeros_like(row.logprobs), reward=0.0, turns=())


def check_images(rows: Sequence[Trajectory]) -> None:
    """Raise `ValueError` unless all rows have images, or none: the vision tower is sharded, and waits for all."""
    without = [row.episode_id for row in rows if not row.images]
    if without and len(without) < len(rows):
        raise ValueError(
            f"episode {without[0]!r} has no image and others have: several processes cannot train on them together"
        )


def summed(sums: LossSums, communicator: Communicator) -> LossSums:
    """The metrics of the batch, of which every process saw a share."""
    return reduce(operator.add, communicator.all_gather(sums.on_host()))
