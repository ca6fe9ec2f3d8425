"""Evaluation: sampled episodes on fixed held-out seeds, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.tasks import CUATask, seed_for
from trainers.protocol import Episode, EpisodePlayer, EpisodeSpec, EvalRecord, OnDone, Played
from trainers.rollouts.turns import WorldTurns, by_category


def evaluate(player: EpisodePlayer, tasks: Sequence[CUATask], episodes: int, step: int, on_done: OnDone) -> EvalRecord:
    """Play `episodes` held-out episodes of `tasks` with the newest weights.

    Raises `EnvironmentFailure` when every episode was lost.
    """
    specs = evaluation_episodes(tasks, episodes)
    played = player.play(specs, on_done)
    record = score(specs, played, step)
    if record.episodes == 0:
        raise EnvironmentFailure(f"all {len(specs)} evaluation episodes were lost; the last: {played[-1].lost[-1]}")
    return record


def evaluation_episodes(tasks: Sequence[CUATask], count: int) -> list[EpisodeSpec]:
    """`count` episodes that depend on nothing but the arguments: episode i plays `seed_for("eval", i)`, and categories
    take turns, the tasks of a category within its turns; where there are several worlds, these by their shares."""
    if not tasks:
        raise ValueError("there are no tasks to evaluate on")
    turns, members_of = WorldTurns(tasks), by_category(tasks)
    specs = []
    for index in range(count):
        world, turn = turns.at(index)
        categories = sorted(members_of[world])
        lap, place = divmod(turn, len(categories))
        members = members_of[world][categories[place]]
        name = f"eval-{index}"
        specs.append(EpisodeSpec(members[lap % len(members)], seed_for("eval", index), name, name))
    return specs


def score(specs: Sequence[EpisodeSpec], played: Sequence[Played], step: int) -> EvalRecord:
    """The record of `played[i]` for `specs[i]`. Episodes lost to infrastructure are counted, not scored; with none
    left the rates are NaN."""
    scored = [(spec, result.rows) for spec, result in zip(specs, played, strict=True) if result.rows is not None]
    of_category: dict[str, tuple[int, int]] = {}
    for spec, rows in scored:
        successes, episodes = of_category.get(spec.task.category, (0, 0))
        of_category[spec.task.category] = (successes + rows[0].success, episodes + 1)
    return EvalRecord(
        step=step,
        episodes=len(scored),
        success_rate=_mean([float(rows[0].success) for _, rows in scored]),
        reward_mean=_mean([rows[0].reward for _, rows in scored]),
        score_mean=_mean([rows[0].score for _, rows in scored]),
        turns_mean=_mean([float(turn_count(rows)) for _, rows in scored]),
        by_category=dict(sorted(of_category.items())),
        infra_errors=sum(len(result.lost) for result in played),
    )


def turn_count(episode: Episode) -> int:
    """Turns of an episode, over all its rows."""
    return sum(len(row.turns) for row in episode)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
