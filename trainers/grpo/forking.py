"""Credit by forking: what a turn is worth, told by episodes that branched off at its beginning.

A group is a tree then: episodes from the start, and branches from the beginning of a turn of one of them. The value of
such a point is the mean of what came of all that passed it, and a stretch of turns from one point to the next, or to an
episode's end, is worth the difference. Values from playing on: VinePPO (Kazemnejad et al., arXiv 2410.01679); stretches
of several turns: SPO (Guo et al., arXiv 2505.23564). What is biased about it stands in docs/algorithms.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import count

from cua_agent.trajectory import Fork, Trajectory
from trainers.config import AdvantageConfig
from trainers.grpo.relative import relative

Stretches = dict[str, list[tuple[int, float]]]
"""Of each episode: the turns (from 0) at which a stretch begins, in order, and what the stretch is worth."""


def fork_advantages(rows: Sequence[Trajectory], turns: Sequence[int], config: AdvantageConfig) -> list[list[float]]:
    """Of each of `rows`, what each of the `turns` that it trains adds to its episode's advantage: `step_weight` times
    what is missing there to the worth of its stretch, in standard deviations of the group's rewards with
    `normalise_by_std`. Rows of an episode come in the order in which they were played."""
    groups: dict[str, dict[str, Trajectory]] = {}
    for row in rows:
        groups.setdefault(row.group_id, {})[row.episode_id] = row
    added: Stretches = {}
    for members in groups.values():
        rewards = {name: row.reward for name, row in members.items()}
        forks = {name: row.fork for name, row in members.items() if row.fork is not None}
        own, scale = relative(rewards, config), _scale(rewards, config)
        for name, stretches in stretch_values(rewards, forks, config).items():
            added[name] = [
                (turn, config.step_weight * (worth / scale - own[name]) if own else 0.0) for turn, worth in stretches
            ]
    numbers = {name: count() for name in added}
    return [
        [_worth_at(added[row.episode_id], next(numbers[row.episode_id])) for _ in range(trained)]
        for row, trained in zip(rows, turns, strict=True)
    ]


def stretch_values(rewards: Mapping[str, float], forks: Mapping[str, Fork], config: AdvantageConfig) -> Stretches:
    """The stretches of a group's episodes, given the reward of each, and where those that are branches forked; a branch
    is one stretch. An episode that branches came from may be missing."""
    found: Stretches = {name: [] for name in rewards}
    from_start = {name: reward for name, reward in rewards.items() if name not in forks}
    for trunk in {fork.episode_id for fork in forks.values()}:
        for turn in sorted({fork.turn for fork in forks.values() if fork.episode_id == trunk}, reverse=True):
            passed = {name: rewards[name] for name, fork in forks.items() if fork == Fork(trunk, turn)}
            if trunk in from_start:
                passed[trunk] = from_start[trunk]
                from_start[trunk] = statistics.fmean(passed.values())
            for name, worth in _compared(passed, config).items():
                found[name].insert(0, (turn if name == trunk else 0, worth))
    for name, worth in _compared(from_start, config).items():
        found[name].insert(0, (0, worth))
    return found


def _compared(values: Mapping[str, float], config: AdvantageConfig) -> dict[str, float]:
    """Each less the mean of all, or of the others."""
    mean, number = statistics.fmean(values.values()) if values else 0.0, len(values)
    others = number / (number - 1) if config.baseline == "leave_one_out" and number > 1 else 1.0
    return {name: (value - mean) * others for name, value in values.items()}


def _scale(rewards: Mapping[str, float], config: AdvantageConfig) -> float:
    return (statistics.pstdev(rewards.values()) or 1.0) if config.normalise_by_std else 1.0


def _worth_at(stretches: Sequence[tuple[int, float]], turn: int) -> float:
    return [worth for first, worth in stretches if first <= turn][-1]
