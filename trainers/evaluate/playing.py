"""Plays held-out episodes with a checkpoint, through the engine and the agent that training plays with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cua_agent.envs.base import Environment, EnvironmentFailure
from cua_agent.inference.base import InferenceEngine
from cua_agent.tasks import CUATask, EvalSplit
from cua_agent.trajectory import Outcome
from trainers.api import loading
from trainers.config import ConfigError, TrainConfig
from trainers.config.validation import shown
from trainers.evaluate.subject import Subject
from trainers.protocol import Episode, EpisodePlayer, EpisodeRunner, EpisodeSpec, OnDone, Played
from trainers.rollouts.evaluation import evaluation_episodes, turn_count


@dataclass(frozen=True)
class Play:
    """One episode: how it ended, how well its goal held then (0..1), and its turns."""

    outcome: Outcome
    score: float
    turns: int

    @property
    def success(self) -> bool:
        """Whether the goal was reached."""
        return self.outcome is Outcome.SUCCESS


@dataclass(frozen=True)
class Start:
    """A task in the world's state of `seed`, and the episodes played from there; `lost` says why others were lost to
    infrastructure."""

    task: str
    category: str
    seed: int
    plays: tuple[Play, ...]
    lost: tuple[str, ...] = ()


def evaluate_subject(subject: Subject, tasks: Sequence[CUATask], starts: int, k: int, on_done: OnDone) -> list[Start]:
    """Play `k` episodes from each of `starts` held-out starts; the first of each is the one that evaluations during
    training play. Raises `ConfigError`, and `EnvironmentFailure` when every episode was lost."""
    specs = evaluation_episodes(tasks, starts)
    with opened(subject) as player:
        played = player.play([again(spec, turn) for spec in specs for turn in range(k)], on_done)
    if all(each.rows is None for each in played):
        raise EnvironmentFailure(f"all {len(played)} episodes were lost; the last: {played[-1].lost[-1]}")
    return [start_of(spec, played[k * place : k * (place + 1)]) for place, spec in enumerate(specs)]


def again(spec: EpisodeSpec, turn: int) -> EpisodeSpec:
    """The `turn`-th episode (from 0) of the same start. Its name decides how it is sampled, so it is always the same
    one."""
    return replace(spec, episode_id=f"{spec.episode_id}-{turn}") if turn else spec


def start_of(spec: EpisodeSpec, played: Sequence[Played]) -> Start:
    """What became of the episodes of one start."""
    plays = tuple(
        Play(each.rows[0].outcome, each.rows[0].score, turn_count(each.rows))
        for each in played
        if each.rows is not None
    )
    lost = tuple(why for each in played for why in each.lost)
    return Start(spec.task.id, spec.task.category, spec.seed, plays, lost)


def tasks_of(config: TrainConfig, split: EvalSplit, named: Sequence[str]) -> list[CUATask]:
    """The held-out tasks of a split: those of the run's own evaluations, or those of the categories and ids `named`.
    Raises `ConfigError` for a name that there is not."""
    from trainers.components import held_out_tasks

    if not named:
        return list(held_out_tasks(config)[split])
    world = config.env.world
    tasks = world.eval_tasks(split) or world.eval_tasks("seeds")
    for name in named:
        if not any(name in (task.category, task.id) for task in tasks):
            categories = ", ".join(sorted({task.category for task in tasks}))
            raise ConfigError(f"tasks={shown(name)}: no such task in split={split}; allowed: {categories}, or an id")
    return [task for task in tasks if task.category in named or task.id in named]


@contextmanager
def opened(subject: Subject) -> Iterator[EpisodePlayer]:
    """What plays episodes with the subject's weights. Raises `ConfigError`."""
    from trainers.components import build_components, build_engine
    from trainers.legacy.rollouts import SynchronousRollouts
    from trainers.run.checkpoint import load_weights

    with loading(subject.config):
        components = build_components(subject.config)
        if subject.checkpoint is not None:
            load_weights(subject.checkpoint, components.policy)
        engine = build_engine(subject.config, components.policy)

        def runner_for(engine: InferenceEngine) -> EpisodeRunner:
            return _without_images(components.runner_for(engine))

        rollouts = SynchronousRollouts(subject.config, replace(components, runner_for=runner_for), engine)
    try:
        yield rollouts
    finally:
        rollouts.close()


def _without_images(run: EpisodeRunner) -> EpisodeRunner:
    """Episodes without their screenshots: nothing is trained on them, and there may be many."""

    async def runner(environment: Environment, spec: EpisodeSpec) -> Episode:
        return [replace(row, images=[]) for row in await run(environment, spec)]

    return runner
