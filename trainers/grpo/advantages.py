"""Group-relative advantages: each episode is compared with the other attempts at the same task and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import AdvantageConfig
from trainers.grpo.credit import step_advantages
from trainers.grpo.relative import relative
from trainers.protocol import Batch


@dataclass(frozen=True)
class GroupAdvantages:
    """The trainable batch and what was left out of it.

    `reward_mean` and `reward_std` (population) are over every valid episode, those of filtered groups included;
    0 when there is none.
    """

    batch: Batch
    groups_kept: int
    groups_filtered: int
    episodes: int
    episodes_infra_error: int
    reward_mean: float
    reward_std: float


def group_advantages(trajectories: Sequence[Trajectory], config: AdvantageConfig) -> GroupAdvantages:
    """One advantage per episode, relative to the episodes of its `group_id`; all rows of an episode share it.

    With rewards r of a group's valid episodes: A_i = (r_i - mean(r)) / std(r), DeepSeekMath (arXiv 2402.03300)
    section 4.1.2, with the population standard deviation; without `normalise_by_std` A_i = r_i - mean(r), Dr. GRPO
    (arXiv 2503.20783); with `baseline=leave_one_out` the mean is that of the other episodes, RLOO (Ahmadian et al.,
    arXiv 2402.14740, section 3.2). Needs no epsilon: groups whose deviation is below `min_group_std` carry no signal
    and are filtered, as are groups of fewer than two valid episodes. An `infra_error` episode is neither trained on nor
    part of the baseline. Kept trajectories stay in their order. With `credit` gigpo or turn, their turns get what
    `step_advantages` gives.

    Raises `ValueError` when an episode's rows disagree about its reward, group or outcome, or a reward is not finite;
    and as `step_advantages`.
    """
    episodes = _episodes(trajectories)
    valid = {key: row for key, row in episodes.items() if row.outcome is not Outcome.INFRA_ERROR}
    groups: dict[str, dict[str, float]] = {row.group_id: {} for row in episodes.values()}
    for episode_id, row in valid.items():
        groups[row.group_id][episode_id] = row.reward

    advantages: dict[str, float] = {}
    kept = 0
    for rewards in groups.values():
        group = relative(rewards, config)
        kept += bool(group)
        advantages |= group

    rows = [row for row in trajectories if row.episode_id in advantages]
    all_rewards = [row.reward for row in valid.values()]
    return GroupAdvantages(
        batch=Batch(
            rows,
            [advantages[row.episode_id] for row in rows],
            [] if config.credit == "episode" else step_advantages(rows, config),
        ),
        groups_kept=kept,
        groups_filtered=len(groups) - kept,
        episodes=len(valid),
        episodes_infra_error=len(episodes) - len(valid),
        reward_mean=statistics.fmean(all_rewards) if all_rewards else 0.0,
        reward_std=statistics.pstdev(all_rewards) if all_rewards else 0.0,
    )


def batch_of(trajectories: Sequence[Trajectory], config: AdvantageConfig) -> Batch:
    """What a training step learns from the rows of its groups; see `group_advantages`."""
    return group_advantages(trajectories, config).batch


def has_signal(group: Sequence[Trajectory], config: AdvantageConfig) -> bool:
    """Whether the rows of one group teach anything: their episodes' rewards differ."""
    return group_advantages(group, config).groups_kept == 1


def _episodes(trajectories: Sequence[Trajectory]) -> dict[str, Trajectory]:
    """The first row of each episode, by episode id, after checking that its other rows agree with it."""
    episodes: dict[str, Trajectory] = {}
    for row in trajectories:
        if not math.isfinite(row.reward):
            raise ValueError(f"episode {row.episode_id!r}: reward {row.reward} is not finite")
        first = episodes.setdefault(row.episode_id, row)
        for name in ("reward", "group_id", "outcome"):
            if getattr(row, name) != getattr(first, name):
                raise ValueError(
                    f"rows of episode {row.episode_id!r} disagree about {name}: "
                    f"{getattr(first, name)!r} and {getattr(row, name)!r}"
                )
    return episodes
