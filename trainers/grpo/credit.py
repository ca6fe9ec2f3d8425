"""Credit by turn: what each turn of an episode adds to the episode's advantage.

A turn's return is compared with those of other turns of its group that began at the same point: a state of the world
that several siblings came through (GiGPO, Feng et al., arXiv 2505.10978), or simply the turn of the same number. What
is unbiased about it, and what is not, stands in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cua_agent.image_hash import image_hash
from cua_agent.trajectory import Trajectory
from trainers.config import AdvantageConfig
from trainers.grpo.forking import fork_advantages
from trainers.grpo.relative import relative


@dataclass
class _Steps:
    """The turns of one episode, over all its rows: where each began, and what it was rewarded with."""

    group_id: str
    reward: float = 0.0
    starts: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """The rewards of its turns, which add up to its own: what they do not tell came with the last."""
        before = self.rewards[:-1]
        return [*before, self.reward - sum(before)] if self.rewards else []


def step_advantages(rows: Sequence[Trajectory], config: AdvantageConfig) -> list[list[float]]:
    """Of each of `rows`, what each turn that it trains adds to its episode's advantage: `step_weight` times how the
    turn's discounted return compares with those of the same group that began at the same point; 0 where none did, or
    where all came to the same.

    Rows of an episode come in the order in which they were played; `credit` is not episode. Raises `ValueError` with
    `credit=gigpo` as `turn_starts`.
    """
    if config.credit == "fork":
        return fork_advantages(rows, [trained_turns(row) for row in rows], config)
    episodes: dict[str, _Steps] = {}
    for row in rows:
        steps = episodes.setdefault(row.episode_id, _Steps(row.group_id))
        steps.reward, before, own = row.reward, len(steps.starts), trained_turns(row)
        steps.starts += turn_starts(row) if config.credit == "gigpo" else [str(before + i) for i in range(own)]
        steps.rewards += [turn.reward for turn in row.turns] if len(row.turns) == own else [0.0] * own

    met: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for name, steps in episodes.items():
        returns = returns_to_go(steps.whole, config.discount)
        for number, (start, value) in enumerate(zip(steps.starts, returns, strict=True)):
            met.setdefault((steps.group_id, start), {})[name, number] = value
    better = {turn: value for returns_there in met.values() for turn, value in relative(returns_there, config).items()}

    turns = {name: iter(range(len(steps.starts))) for name, steps in episodes.items()}
    return [
        [
            config.step_weight * better.get((row.episode_id, next(turns[row.episode_id])), 0.0)
            for _ in range(trained_turns(row))
        ]
        for row in rows
    ]


def returns_to_go(rewards: Sequence[float], discount: float) -> list[float]:
    """Of each turn t, sum over k >= t of discount^(k - t) * rewards[k]."""
    returns: list[float] = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + discount * following
        returns.append(following)
    return returns[::-1]


def turn_starts(row: Trajectory) -> list[str]:
    """The state that each turn which `row` trains began in: as it was recorded, else the pixels that it was shown.
    Raises `ValueError` when there is not one record for each of them, or no state and no screenshot is known."""
    trained = trained_turns(row)
    if len(row.turns) != trained:
        raise ValueError(f"episode {row.episode_id!r}: {trained} turns are trained, {len(row.turns)} are recorded")
    shown = row.images[len(row.images) - trained :] if len(row.images) >= trained else [None] * trained
    starts = [
        turn.state or (image_hash(image) if image is not None else None)
        for turn, image in zip(row.turns, shown, strict=True)
    ]
    if None in starts:
        raise ValueError(f"episode {row.episode_id!r}: no state is known of turn {starts.index(None) + 1}")
    return [start for start in starts if start is not None]


def turn_numbers(loss_mask: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """int64 [N]: to which of the row's trained turns, from 0, each of its N trained tokens belongs. A turn is an
    unbroken run of them: the next one's prompt always comes between."""
    trained = loss_mask.astype(bool)
    begins = trained & ~np.concatenate([[False], trained[:-1]])
    return np.asarray(np.cumsum(begins)[trained] - 1, np.int64)


def trained_turns(row: Trajectory) -> int:
    """How many turns `row` trains."""
    numbers = turn_numbers(row.loss_mask)
    return int(numbers[-1]) + 1 if numbers.size else 0


def token_steps(row: Trajectory, steps: Sequence[float]) -> npt.NDArray[np.float32]:
    """float32 [L]: on each trained token of `row` what its turn adds to the advantage; 0 elsewhere, and everywhere
    when `steps` is empty. Raises `ValueError` unless there is one of `steps` for each turn that the row trains."""
    added = np.zeros(len(row), np.float32)
    if not len(steps):
        return added
    if len(steps) != trained_turns(row):
        raise ValueError(f"episode {row.episode_id!r}: {trained_turns(row)} turns are trained, {len(steps)} have steps")
    added[row.loss_mask.astype(bool)] = np.asarray(steps, np.float32)[turn_numbers(row.loss_mask)]
    return added
