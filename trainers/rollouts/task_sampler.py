"""Which tasks and seeds training draws: balanced over categories, or by how hard they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from cua_agent.tasks import CUATask, seed_for
from trainers.config import ConfigError, EnvConfig, TrainConfig
from trainers.protocol import GroupSpec
from trainers.rollouts.difficulty import TaskDifficulty
from trainers.rollouts.turns import WorldTurns, by_category

T = TypeVar("T")
_SEEDS_PER_RUN = 1_000_000
_RUNS = 1_000  # seed ranges of runs repeat after this many run seeds


class TaskSampler:
    """An endless sequence of groups; `position`, and what `difficulty` has seen, are all of its state.

    Where there are several worlds they take turns by their shares. Within a world, categories take turns in an order
    that is shuffled every round, and so do the tasks within a category, so that any window of the sequence is balanced.
    With `difficulty` each task of the world is drawn with the probability that this gives it at the moment of the draw.
    `turn_limit` bounds the turns of the n-th group, besides the task's own bound.

    The n-th group of run seed s plays `seed_for("train", s * 1e6 + n)`: runs with different seeds (below 1,000) see
    different starts. With `share` (r, n) it is the sequence's every n-th group, from the r-th on, and positions count
    these.
    """

    def __init__(
        self,
        tasks: Sequence[CUATask],
        seed: int,
        position: int = 0,
        share: tuple[int, int] = (0, 1),
        *,
        difficulty: TaskDifficulty | None = None,
        turn_limit: Callable[[int], int] | None = None,
    ) -> None:
        if not tasks:
            raise ValueError("there are no tasks to sample from")
        self._turns = WorldTurns(tasks)
        self._by_category = by_category(tasks)
        self._seed = seed
        self._first, self._every = share
        self._difficulty = difficulty
        self._turn_limit = turn_limit
        self.tasks = {task.id: task for task in tasks}
        self.position = position

    def next(self, count: int) -> list[GroupSpec]:
        """The next `count` groups."""
        specs = [self.at(self.position + offset) for offset in range(count)]
        self.position += count
        return specs

    def at(self, index: int) -> GroupSpec:
        """The group at a position, whatever was drawn before; by difficulty it may be another one later."""
        place = self._first + index * self._every
        return self.named(index, (self._in_turn(place) if self._difficulty is None else self._by_chance(place)).id)

    def named(self, index: int, task_id: str) -> GroupSpec:
        """The group at a position for which that task was drawn."""
        place = self._first + index * self._every
        start = (self._seed % _RUNS) * _SEEDS_PER_RUN + place % _SEEDS_PER_RUN
        task = self.tasks[task_id]
        if self._turn_limit is not None:
            task = replace(task, max_steps=min(task.max_steps, self._turn_limit(place)))
        return GroupSpec(task, seed_for("train", start), f"g{place:06d}")

    def _in_turn(self, index: int) -> CUATask:
        world, turn = self._turns.at(index)
        categories = self._by_category[world]
        lap, place = divmod(turn, len(categories))
        category = self._shuffled(sorted(categories), f"{world}categories", lap)[place]
        tasks = categories[category]
        task_lap, task_place = divmod(lap, len(tasks))
        return self._shuffled(tasks, category, task_lap)[task_place]

    def _by_chance(self, index: int) -> CUATask:
        assert self._difficulty is not None
        world, _ = self._turns.at(index)
        probabilities = self._difficulty.probabilities(self._by_category[world])
        dice = random.Random(f"{self._seed}/draw/{index}")
        [drawn] = dice.choices(list(probabilities), list(probabilities.values()))
        return self.tasks[drawn]

    def _shuffled(self, items: Sequence[T], what: str, lap: int) -> list[T]:
        return random.Random(f"{self._seed}/{what}/{lap}").sample(items, len(items))


def training_sampler(
    config: TrainConfig, tasks: Sequence[CUATask], difficulty: TaskDifficulty, share: tuple[int, int] = (0, 1)
) -> TaskSampler:
    """The training sequence of a run; with `share`, a part of it."""
    by_difficulty = config.sampling.strategy == "difficulty"
    turn_limit = None if config.sampling.turns_start is None else partial(turns_allowed, config)
    return TaskSampler(
        tasks,
        config.seed,
        share=share,
        difficulty=difficulty if by_difficulty else None,
        turn_limit=turn_limit,
    )


def turns_allowed(config: TrainConfig, index: int) -> int:
    """Turns that the curriculum allows the group at `index` of the training sequence: from `sampling.turns_start` they
    grow by equal parts to `rollout.max_turns`, reached after `sampling.turns_steps` steps: a growing horizon as in Shen
    et al., "Thinking vs. Doing" (arXiv 2506.07976)."""
    start, most = config.sampling.turns_start or config.rollout.max_turns, config.rollout.max_turns
    step = index // config.rollout.groups_per_step
    return min(start + (most - start) * step // config.sampling.turns_steps, most)


def training_tasks(config: EnvConfig) -> list[CUATask]:
    """The training tasks of the world, only those of the categories `config.tasks` when given.

    Raises `ConfigError` for a category that does not exist.
    """
    return select_categories(config.world.training_tasks(), config.tasks)


def select_categories(tasks: Sequence[CUATask], categories: Sequence[str]) -> list[CUATask]:
    """The tasks of the given categories (all of them when none is given). Raises `ConfigError` for an unknown one."""
    known = sorted({task.category for task in tasks})
    for category in categories:
        if category not in known:
            raise ConfigError(f"env.tasks={category!r} is not a category; allowed: {', '.join(known)}")
    return [task for task in tasks if not categories or task.category in categories]
