"""`env=mix`: several worlds in one run, each with a share of the training and options of its own.

A task of the world `pocket` is called `pocket::<its id>` in a mixture, and its category likewise.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cua_agent.actions import Action, Point
from cua_agent.envs.base import (
    Environment,
    EnvironmentFailure,
    Forkable,
    Observation,
    StepResult,
    TellsSideEffects,
    WorldUnavailable,
)
from cua_agent.envs.guard import TIMEOUT_S
from cua_agent.envs.pool import EnvironmentFactory, GoverningFactory, PoolPolicy, SelfChecking
from cua_agent.envs.registry import OPTIONS, all_options, make_world, open_world
from cua_agent.envs.world import World
from cua_agent.options import STRICT, ConfigError
from cua_agent.tasks import IN_WORLD, CUATask, EvalSplit

_WORLDS = f"{OPTIONS}.worlds"


@pydantic_dataclass(frozen=True, config=STRICT)
class Part:
    """One world of a mixture."""

    share: float = Field(gt=0, description="how often its tasks are drawn, relative to the other worlds'")
    world: str = Field(default="", description="its name, or package.module:factory; empty: what it is called here")
    tasks: tuple[str, ...] = Field(default=(), strict=False, description="task categories; empty: all")
    args: dict[str, Any] = Field(default_factory=dict, description="options of the world")


def _part(given: Any) -> Any:
    return {"share": given} if isinstance(given, int | float) else given


@pydantic_dataclass(frozen=True, config=STRICT)
class MixWorld:
    """Several worlds in one run."""

    worlds: dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], Annotated[Part, BeforeValidator(_part)]] = Field(
        min_length=1, description="by what they are called: their share, or share, world, tasks and args"
    )
    run: str | None = Field(default=None, description="what environments are labelled with; null: the run's directory")

    @field_validator("worlds")
    @classmethod
    def _complete(cls, worlds: dict[str, Part]) -> dict[str, Part]:
        """Options are checked by their world, which also fills in its defaults."""
        return {
            name: replace(part, args=all_options(part.world or name, part.args, f"{_WORLDS}.{name}.args"))
            for name, part in worlds.items()
        }

    @cached_property
    def parts(self) -> Mapping[str, World]:
        """The worlds by name, made anew; those that label what they make use this one's label."""
        made = {}
        for name, part in self.worlds.items():
            label = {"run": self.run} if self.run and part.args.get("run", "") is None else {}
            made[name] = make_world(part.world or name, {**part.args, **label}, f"{_WORLDS}.{name}.args")
        return made

    @property
    def PRACTICAL(self) -> frozenset[str]:  # noqa: N802 - see `World`
        """Those of all worlds, and the label."""
        practical = {name: getattr(world, "PRACTICAL", ()) for name, world in self.parts.items()}
        return frozenset({"run", *(f"worlds.{name}.args.{key}" for name, keys in practical.items() for key in keys)})

    @property
    def DESCRIBES_SCREENS(self) -> bool:  # noqa: N802 - see `World`
        """Whether all worlds do."""
        return all(getattr(world, "DESCRIBES_SCREENS", False) for world in self.parts.values())

    @property
    def FORKS(self) -> bool:  # noqa: N802 - see `World`
        """Whether all worlds do."""
        return all(getattr(world, "FORKS", False) for world in self.parts.values())

    def check(self) -> None:
        """Raises `WorldUnavailable` when one of the worlds is."""
        for name, world in self.parts.items():
            try:
                world.check()
            except WorldUnavailable as error:
                raise WorldUnavailable(f"{_WORLDS}.{name}: {error}") from error

    def open(self) -> AbstractAsyncContextManager[EnvironmentFactory]:
        """See `World`."""
        return self.open_within(TIMEOUT_S)

    @asynccontextmanager
    async def open_within(self, timeout_s: float) -> AsyncIterator[EnvironmentFactory]:
        """See `Mixture`."""
        async with AsyncExitStack() as stack:
            entered = {
                name: await stack.enter_async_context(open_world(world, timeout_s))
                for name, world in self.parts.items()
            }
            shelf = _Shelf(entered)
            stack.push_async_callback(shelf.close)
            yield shelf.new_environment

    def training_tasks(self) -> list[CUATask]:
        """Those of all worlds, each with its world's share."""
        return [
            task
            for name, world in self.parts.items()
            for task in self._named(name, _chosen(world.training_tasks(), self.worlds[name].tasks, name))
        ]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """Those of all worlds; for a world without templates those of `seeds` stand here, too."""
        found = []
        for name, world in self.parts.items():
            tasks = world.eval_tasks(split) or world.eval_tasks("seeds")
            wanted = [task for task in tasks if task.category in self.worlds[name].tasks]
            found += self._named(name, wanted or tasks)
        return found

    def _named(self, name: str, tasks: list[CUATask]) -> list[CUATask]:
        mark, share = f"{name}{IN_WORLD}", self.worlds[name].share
        return [replace(t, id=mark + t.id, category=mark + t.category, share=share) for t in tasks]


def _chosen(tasks: list[CUATask], categories: tuple[str, ...], name: str) -> list[CUATask]:
    known = sorted({task.category for task in tasks})
    if unknown := [category for category in categories if category not in known]:
        raise ConfigError(f"{_WORLDS}.{name}.tasks={unknown[0]!r} is not a category; allowed: {', '.join(known)}")
    return [task for task in tasks if not categories or task.category in categories]


@dataclass(eq=False)
class _Kept:
    """An environment of one of the worlds."""

    world: str
    environment: Environment
    policy: PoolPolicy
    born: float = field(default_factory=time.monotonic)
    episodes: int = 0

    async def is_fit(self) -> bool:
        """Whether it may play another episode."""
        spent = self.episodes >= (self.policy.max_episodes or math.inf)
        if spent or time.monotonic() - self.born >= self.policy.max_age_s:
            return False
        return not isinstance(self.environment, SelfChecking) or await self.environment.is_fit()


class _Shelf:
    """Environments of all worlds that are between two episodes. There are never more environments, those in use
    included, than mixed ones that take them from here: one of another world makes room."""

    def __init__(self, factories: Mapping[str, EnvironmentFactory]) -> None:
        self._factories = factories
        self._idle: dict[str, list[_Kept]] = {name: [] for name in factories}
        self._alive = 0
        self._choosing = asyncio.Lock()
        self.users = 0

    async def new_environment(self) -> MixedEnvironment:
        """One that takes from here what its task needs."""
        self.users += 1
        return MixedEnvironment(self)

    async def take(self, world: str) -> _Kept:
        """A fit environment of `world`. Raises `EnvironmentFailure`."""
        async with self._choosing:
            while self._idle[world]:
                kept = self._idle[world].pop()
                if await kept.is_fit():
                    return kept
                await self._end_quietly(kept)
            if self._alive >= self.users and (others := [idle for idle in self._idle.values() if idle]):
                await self._end_quietly(max(others, key=len).pop(0))
            self._alive += 1
        factory = self._factories[world]
        try:
            environment = await factory()
        except BaseException:
            self._alive -= 1
            raise
        return _Kept(world, environment, factory.policy if isinstance(factory, GoverningFactory) else PoolPolicy())

    def put_back(self, kept: _Kept) -> None:
        """Keep it for the next episode in its world."""
        self._idle[kept.world].append(kept)

    async def end(self, kept: _Kept) -> None:
        """Close it."""
        try:
            await kept.environment.close()
        finally:
            self._alive -= 1

    async def close(self) -> None:
        """Close all that are here."""
        for idle in self._idle.values():
            while idle:
                await self._end_quietly(idle.pop())

    async def _end_quietly(self, kept: _Kept) -> None:
        with suppress(Exception):  # a broken world may well fail to close; it is being thrown away
            await self.end(kept)


class MixedEnvironment:
    """Implements `Environment`: an episode plays in an environment of its task's world."""

    def __init__(self, shelf: _Shelf) -> None:
        self._shelf = shelf
        self._kept: _Kept | None = None
        self._closed = False

    @property
    def _environment(self) -> Environment:
        if self._kept is None:
            raise EnvironmentFailure("no episode was begun")
        return self._kept.environment

    async def reset(self, task: CUATask, seed: int) -> Observation:
        environment, own = await self._entered(task)
        return await environment.reset(own, seed)

    async def step(self, action: Action) -> StepResult:
        return await self._environment.step(action)

    async def locate(self, target: str) -> Point | None:
        return await self._environment.locate(target)

    async def compute_reward(self) -> float:
        return await self._environment.compute_reward()

    async def side_effects(self) -> int:
        """What the world says that the episode changed besides its goal; 0 where it cannot say."""
        environment = self._environment
        return await environment.side_effects() if isinstance(environment, TellsSideEffects) else 0

    async def snapshot(self) -> object:
        """That of the episode's world; only where it can be copied."""
        assert isinstance(self._environment, Forkable)
        return await self._environment.snapshot()

    async def restore(self, task: CUATask, snapshot: object) -> Observation:
        """Go on with `task` from `snapshot`."""
        environment, own = await self._entered(task)
        assert isinstance(environment, Forkable)
        return await environment.restore(own, snapshot)

    async def _entered(self, task: CUATask) -> tuple[Environment, CUATask]:
        """An environment of the task's world, in exchange for that of the last episode, and the task as it knows it."""
        world, _, _ = task.id.partition(IN_WORLD)
        kept, self._kept = self._kept, None
        if kept is not None:
            self._shelf.put_back(kept)
        self._kept = kept = await self._shelf.take(world)
        kept.episodes += 1
        mark = f"{world}{IN_WORLD}"
        own = replace(task, id=task.id.removeprefix(mark), category=task.category.removeprefix(mark))
        return kept.environment, own

    async def close(self) -> None:
        if self._closed:
            return
        self._closed, kept, self._kept = True, self._kept, None
        try:
            if kept is not None:
                await self._shelf.end(kept)
        finally:
            self._shelf.users -= 1
