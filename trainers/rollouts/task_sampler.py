"""Which tasks and seeds training draws: balanced over categories, a pure function of the run's seed and position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from cua_agent.tasks import CUATask, seed_for
from trainers.config import ConfigError, EnvConfig
from trainers.protocol import GroupSpec
from trainers.rollouts.turns import WorldTurns, by_category

T = TypeVar("T")
_SEEDS_PER_RUN = 1_000_000
_RUNS = 1_000  # seed ranges of runs repeat after this many run seeds


class TaskSampler:
    """An endless sequence of groups; `position` is all of its state.

    Where there are several worlds they take turns by their shares. Within a world, categories take turns in an order
    that is shuffled every round, and so do the tasks within a category, so that any window of the sequence is balanced.
    The n-th group of run seed s plays `seed_for("train", s * 1e6 + n)`: runs with different seeds (below 1,000) see
    different starts. With `share` (r, n) it is the sequence's every n-th group, from the r-th on, and positions count
    these.
    """

    def __init__(self, tasks: Sequence[CUATask], seed: int, position: int = 0, share: tuple[int, int] = (0, 1)) -> None:
        if not tasks:
            raise ValueError("there are no tasks to sample from")
        self._turns = WorldTurns(tasks)
        self._by_category = by_category(tasks)
        self._seed = seed
        self._first, self._every = share
        self.position = position

    def next(self, count: int) -> list[GroupSpec]:
        """The next `count` groups."""
        specs = [self.at(self.position + offset) for offset in range(count)]
        self.position += count
        return specs

    def at(self, index: int) -> GroupSpec:
        """The group at a position, whatever was drawn before."""
        index = self._first + index * self._every
        world, turn = self._turns.at(index)
        categories = self._by_category[world]
        lap, place = divmod(turn, len(categories))
        category = self._shuffled(sorted(categories), f"{world}categories", lap)[place]
        tasks = categories[category]
        task_lap, task_place = divmod(lap, len(tasks))
        task = self._shuffled(tasks, category, task_lap)[task_place]
        start = (self._seed % _RUNS) * _SEEDS_PER_RUN + index % _SEEDS_PER_RUN
        return GroupSpec(task, seed_for("train", start), f"g{index:06d}")

    def _shuffled(self, items: Sequence[T], what: str, lap: int) -> list[T]:
        return random.Random(f"{self._seed}/{what}/{lap}").sample(items, len(items))


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
