"""Where the branches of a group begin."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from cua_agent.trail import BranchPoint, Trail
from trainers.protocol import Episode, EpisodeSpec, GroupSpec


def branch_point(episodes: Sequence[Episode], name: str) -> BranchPoint | None:
    """The beginning of any turn but the first of the best of `episodes` (of several, of any), drawn by `name`; None
    where none of those that left a trail has a second turn."""
    dice = random.Random(name)
    trails: list[tuple[float, Trail | None]] = [(rows[0].reward, rows[0].trail) for rows in episodes]
    long = [(reward, trail) for reward, trail in trails if trail is not None and len(trail.turns) > 1]
    if not long:
        return None
    best = max(reward for reward, _ in long)
    trail = dice.choice([trail for reward, trail in long if reward == best])
    return BranchPoint(trail, dice.randrange(1, len(trail.turns)))


def member_specs(spec: GroupSpec, members: range, *, trail: bool = False) -> list[EpisodeSpec]:
    """The episodes of a group with these numbers, from its start."""
    return [
        EpisodeSpec(spec.task, spec.seed, spec.group_id, f"{spec.group_id}-{member}", leaves_trail=trail)
        for member in members
    ]


def branch_specs(spec: GroupSpec, episodes: Sequence[Episode], members: range) -> list[EpisodeSpec]:
    """Those of a group with these numbers, which branch off one of its `episodes`; from its start where that cannot
    be."""
    begin = branch_point(episodes, spec.group_id)
    return [replace(each, begin=begin) for each in member_specs(spec, members)]


def without_trails(episodes: Sequence[Episode]) -> list[Episode]:
    """Nobody branches off them any more."""
    return [[replace(row, trail=None) for row in rows] for rows in episodes]
