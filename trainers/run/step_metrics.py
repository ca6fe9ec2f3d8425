"""From what happened in a step to its metrics row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from cua_agent.tasks import world_of
from cua_agent.trajectory import Trajectory
from trainers.protocol import Batch, Collected, Episode, Group, StepRecord, TrainerState, Usage
from trainers.rollouts.evaluation import turn_count
from trainers.run.gpu_meter import GpuFigures
from trainers.run.metrics import NAN, StepMetrics
from trainers.run.server_meter import ServerFigures
from trainers.run.throughput import Throughput

_KEYS = {f.name for f in fields(StepMetrics)}


@dataclass(frozen=True)
class Timing:
    """Wall seconds of a step and its parts, and what the GPU did while it trained."""

    rollout_s: float
    train_s: float
    sync_s: float
    step_s: float
    gpu: GpuFigures = field(default_factory=GpuFigures)


@dataclass(frozen=True)
class Staleness:
    """Policy versions between a sampled token and the update that trains on it: `mean` and `max` over tokens, and for
    running means `rows_sum`, the sum over `rows` of each one's largest."""

    mean: float = 0.0
    max: int = 0
    rows_sum: int = 0
    rows: int = 0


def staleness(rows: Sequence[Trajectory], version: int) -> Staleness:
    """Over the trained tokens of `rows`, which an update of policy `version` trains on; 0 without any."""
    behind = [version - row.versions[row.loss_mask == 1] for row in rows if row.loss_mask.any()]
    if not behind:
        return Staleness()
    largest = [int(of_row.max()) for of_row in behind]
    return Staleness(float(np.concatenate(behind).mean()), max(largest), sum(largest), len(largest))


def cut_turns(episodes: Sequence[Episode]) -> tuple[int, int]:
    """How many turns of `episodes` the token limit cut off, and of how many."""
    turns = [turn for episode in episodes for row in episode for turn in row.turns]
    return sum(turn.truncated for turn in turns), len(turns)


def repeated(episodes: Sequence[Episode]) -> int:
    """Turns of `episodes` that did the same, at the same place, as the turn before them."""
    played = [[turn for row in episode for turn in row.turns] for episode in episodes]
    pairs = [pair for turns in played for pair in pairwise(turns)]
    return sum(b.action is not None and (a.action, a.point) == (b.action, b.point) for a, b in pairs)


def group_successes(groups: Sequence[Group]) -> dict[int, int]:
    """How many groups have each number of successful episodes."""
    counts = Counter(sum(episode[0].success for episode in group.episodes if episode) for group in groups)
    return dict(sorted(counts.items()))


def advantage_by_turn(batch: Batch) -> dict[str, float]:
    """The mean advantage of the turns that `batch` trains, by their number in the episode, in ranges that double."""
    ranges: dict[int, list[float]] = {}
    played: Counter[str] = Counter()
    for row, advantage, steps in zip(batch.trajectories, batch.advantages, batch.steps, strict=True):
        played.setdefault(row.episode_id, row.fork.turn if row.fork else 0)
        for step in steps or [0.0] * len(row.turns):
            ranges.setdefault(played[row.episode_id].bit_length(), []).append(advantage + step)
            played[row.episode_id] += 1
    return {_range(exponent): statistics.fmean(values) for exponent, values in sorted(ranges.items())}


def _range(exponent: int) -> str:
    """Numbers of turns, counted from 1, that are `exponent` bits long when they are counted from 0."""
    first, last = 2 ** (exponent - 1) + 1 if exponent else 1, 2**exponent
    return str(first) if first == last else f"{first}-{last}"


def advance(state: TrainerState, timing: Timing, stale: Staleness, episodes: Sequence[Episode]) -> TrainerState:
    """`state` one training step later, which played `episodes`; the policy's version is kept where it changes."""
    truncated, turns = cut_turns(episodes)
    return replace(
        state,
        step=state.step + 1,
        staleness_sum=state.staleness_sum + stale.rows_sum,
        staleness_count=state.staleness_count + stale.rows,
        staleness_max=max(state.staleness_max, stale.max),
        turns=state.turns + turns,
        turns_truncated=state.turns_truncated + truncated,
        rollout_s=state.rollout_s + timing.rollout_s,
        train_s=state.train_s + timing.train_s,
    )


def step_metrics(
    state: TrainerState,
    collected: Collected,
    batch: Batch,
    updates: Sequence[StepRecord],
    stale: Staleness,
    timing: Timing,
    usage: Usage,
    throughput: Throughput,
    servers: ServerFigures,
) -> StepMetrics:
    """The row of the step that led to `state`; loss figures are means over its applied updates."""
    tokens = sum(len(row) for row in batch.trajectories)
    figures = _mean_of_applied(updates).items()
    learning: dict[str, Any] = {key: value for key, value in figures if key in _KEYS and key != "tokens"}
    return StepMetrics(
        step=state.step,
        policy_version=state.policy_version,
        groups_kept=len(collected.kept),
        groups_filtered=len(collected.filtered),
        groups_dropped=len(collected.dropped),
        episodes_branched=sum(len(group.branches) for group in collected.groups),
        episodes_replayed=sum(len(group.replayed) for group in collected.kept),
        episodes_infra_error=len(collected.lost),
        updates_skipped=sum(update.skipped for update in updates),
        staleness_mean=stale.mean,
        staleness_max=stale.max,
        rollout_s=timing.rollout_s,
        train_s=timing.train_s,
        sync_s=timing.sync_s,
        step_s=timing.step_s,
        env_utilisation=usage.utilisation,
        env_wait_s=usage.env_wait_s,
        box_minutes=usage.box_minutes,
        tokens=tokens,
        tokens_per_s=tokens / timing.step_s,
        train_tokens_per_s=throughput.tokens_per_s,
        train_tflops=throughput.tflops,
        mfu=throughput.mfu,
        gpu_wait_s=timing.gpu.wait_s,
        gpu_peak_gib=timing.gpu.peak_gib,
        engine_tokens_per_s=servers.tokens_per_s,
        engine_queue_s=servers.queue_s,
        group_successes=group_successes(collected.groups),
        advantage_by_turn=advantage_by_turn(batch),
        **learning,
        **_episode_figures(collected.episodes),
    )


def _mean_of_applied(updates: Sequence[StepRecord]) -> dict[str, float]:
    applied = [update.metrics for update in updates if not update.skipped]
    return {key: statistics.fmean(metrics[key] for metrics in applied) for key in applied[0]} if applied else {}


def _episode_figures(episodes: Sequence[Episode]) -> dict[str, Any]:
    if not episodes:
        return {}
    rewards = [episode[0].reward for episode in episodes]
    truncated, turns = cut_turns(episodes)
    return {
        "episodes": len(episodes),
        "reward_mean": statistics.fmean(rewards),
        "reward_std": statistics.pstdev(rewards),
        "score_mean": statistics.fmean(episode[0].score for episode in episodes),
        "success_rate": statistics.fmean(float(episode[0].success) for episode in episodes),
        "turns_mean": statistics.fmean(turn_count(episode) for episode in episodes),
        "truncated": truncated / turns if turns else NAN,
        "repeated_actions": repeated(episodes) / turns if turns else NAN,
        "outcomes": dict(Counter(episode[0].outcome.value for episode in episodes)),
        "worlds": _world_figures(episodes),
    }


def _world_figures(episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Of each world by name; nothing where there is one."""
    played: dict[str, list[Trajectory]] = {}
    for episode in episodes:
        played.setdefault(world_of(episode[0].task_id), []).append(episode[0])
    return {
        world: {
            "episodes": len(rows),
            "success_rate": statistics.fmean(float(row.success) for row in rows),
            "score_mean": statistics.fmean(row.score for row in rows),
            "reward_mean": statistics.fmean(row.reward for row in rows),
        }
        for world, rows in sorted(played.items())
        if world
    }
