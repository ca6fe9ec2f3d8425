"""Tasks: what the agent is asked to do, and how the environment's state tells whether it was done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Probe = Callable[[str], Awaitable[str]]
"""Runs one command in the environment and returns its output: an Android shell command on phones (real or
simulated), a JavaScript expression in web pages."""

IN_WORLD = "::"
"""Between the name of a world and the rest, in ids and categories of tasks of several worlds that one run plays."""

Difficulty = Literal["easy", "medium", "hard"]
EvalSplit = Literal["seeds", "templates"]
SeedUse = Literal["clone", "train", "eval"]

_SEEDS_PER_USE = 1_000_000_000
_SEED_USES: tuple[SeedUse, ...] = ("clone", "train", "eval")


class Validator(Protocol):
    """Reads the environment's state through a probe; never looks at pixels or at the model's words."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        """State right after reset that `score` compares with (empty when the goal is absolute)."""
        ...

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        """How well the goal holds now, 0..1."""
        ...


@dataclass(frozen=True)
class CUATask:
    """One task. `category` is its family; `description` is the goal as the user states it.

    `max_steps` bounds the turns of an episode, the final report included. `secrets` are texts that no record of an
    episode shows: a password that the goal asks to type, say. `share` is that of its world, where a run plays several:
    how often their tasks are drawn, relative to each other. Raises `ValueError` when the validator is missing or a
    field is empty, because such a task could only ever score 0.
    """

    id: str
    name: str
    description: str
    difficulty: Difficulty
    category: str
    max_steps: int
    validation: Validator
    secrets: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.validation, method, None)) for method in ("snapshot", "score")):
            raise ValueError(f"task {self.id!r} has no validator (an object with snapshot and score)")
        if not (self.id and self.name and self.description and self.category):
            raise ValueError(f"task {self.id!r}: id, name, description and category must not be empty")
        if self.max_steps < 1:
            raise ValueError(f"task {self.id!r}: max_steps={self.max_steps} must be at least 1")


def world_of(name: str) -> str:
    """The world that the id or category `name` belongs to, where a run plays several; "" where it plays one."""
    world, mark, _ = name.partition(IN_WORLD)
    return world if mark else ""


def seed_for(use: SeedUse, index: int) -> int:
    """The `index`-th seed reserved for a use; no seed belongs to two uses."""
    if not 0 <= index < _SEEDS_PER_USE:
        raise ValueError(f"seed index {index} is outside 0..{_SEEDS_PER_USE - 1}")
    return _SEED_USES.index(use) * _SEEDS_PER_USE + index


class TaskSource(Protocol):
    """The tasks of one world; worlds are such."""

    def training_tasks(self) -> list[CUATask]:
        """The tasks that training draws from."""
        ...

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The held-out tasks of a split; see `get_eval_tasks`."""
        ...


_sources: dict[str, TaskSource] = {}


def register_tasks(env: str, source: TaskSource) -> None:
    """Make the tasks of a world known under its name; `cua_agent.envs.registry` does so for those built in."""
    _sources[env] = source


def get_training_tasks(env: str = "pocket") -> list[CUATask]:
    """The tasks that training draws from. Raises `KeyError` for a world that no one registered."""
    return _sources[env].training_tasks()


def get_eval_tasks(env: str = "pocket", split: EvalSplit = "seeds") -> list[CUATask]:
    """Held-out tasks: `seeds` are the training goals (to be run on seeds of use "eval"), `templates` are wordings and
    combinations that training never shows. MiniWoB++ has no templates of its own: its held-out tasks stand for them.
    """
    return _sources[env].eval_tasks(split)
