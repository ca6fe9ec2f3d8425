"""`env=gymnasium`: any gymnasium environment that renders RGB."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.actions import Action
from cua_agent.by_name import load
from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.guard import AnyFactory
from cua_agent.envs.gymnasium.mapping import Tables
from cua_agent.envs.own_score import OwnScore
from cua_agent.error_text import type_and_line
from cua_agent.options import STRICT
from cua_agent.tasks import CUATask, EvalSplit


@dataclass(frozen=True, config=STRICT)
class GymnasiumWorld:
    """A gymnasium environment that renders RGB, and what keys and taps mean to it. The defaults are an example."""

    id: str = Field(default="FrozenLake-v1", min_length=1, description="as gymnasium.make takes it; module:id imports")
    make: dict[str, Any] = Field(
        default_factory=lambda: {"is_slippery": False}, description="further arguments of gymnasium.make"
    )
    goal: str = Field(
        default="Walk to the present with the arrow keys and step into no hole.",
        min_length=1,
        description="what the agent is told, the meaning of keys and taps included",
    )
    actions: dict[str, Any] = Field(
        default_factory=lambda: {"left": 0, "down": 1, "right": 2, "up": 3},
        description="the environment's actions, by names of your own",
    )
    presses: dict[str, str] = Field(
        default_factory=lambda: {"ArrowLeft": "left", "ArrowDown": "down", "ArrowRight": "right", "ArrowUp": "up"},
        description="the action of a key",
    )
    taps: tuple[tuple[str | None, ...], ...] = Field(
        default=(), description="the action of a tap: the screen in rows of equal cells; null: none"
    )
    wait: str | None = Field(default=None, description="the action of waiting; null: nothing happens")
    mapping: str | None = Field(
        default=None,
        description="module:function(action) -> the environment's action, or None; instead of these tables",
    )
    repeat: int = Field(default=1, ge=1, description="how often an action is taken before the next screenshot")
    returns: tuple[float, float] = Field(default=(0.0, 1.0), description="sums of rewards that score 0 and 1")
    max_steps: int = Field(default=20, ge=1, description="turns of an episode")

    @model_validator(mode="after")
    def _consistent(self) -> GymnasiumWorld:
        if self.mapping is None:
            cells = [("taps", cell) for row in self.taps for cell in row if cell is not None]
            used = [*(("presses", name) for name in self.presses.values()), *cells]
            used += [] if self.wait is None else [("wait", self.wait)]
            for table, name in used:
                if name not in self.actions:
                    raise ValueError(f"{table} names {name!r}; actions: {', '.join(self.actions) or 'none'}")
            if not self.presses and not any(cell for row in self.taps for cell in row):
                raise ValueError("presses and taps are empty: nothing can be done")
            if not all(self.taps):
                raise ValueError("a row of taps is empty")
        if self.returns[0] == self.returns[1]:
            raise ValueError(f"returns={list(self.returns)}: two different sums are wanted")
        return self

    def check(self) -> None:
        """Make the environment once, look whether it draws itself and takes the actions. Raises `WorldUnavailable`."""
        if importlib.util.find_spec("gymnasium") is None:
            raise WorldUnavailable("env=gymnasium needs the package gymnasium: pip install 'cua-grpo[gymnasium]'")
        from cua_agent.envs.gymnasium.environment import NotPlayable, in_space, make, picture

        self._meaning()
        try:
            with closing(make(self.id, self.make)) as env:
                for action in () if self.mapping else self.actions.values():
                    in_space(env.action_space, action)
                env.reset(seed=0)
                picture(env)
        except Exception as error:  # an environment of somebody else may raise anything
            reason = str(error) if isinstance(error, NotPlayable) else type_and_line(error)
            raise WorldUnavailable(f"env.args.id={self.id}: {reason}") from error

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AnyFactory]:
        """Every environment is one of its own, in a thread of its own."""
        from cua_agent.envs.gymnasium.environment import GymnasiumEnvironment, make, reported

        meaning = self._meaning()
        locate = meaning.locate if isinstance(meaning, Tables) else _nowhere

        def start() -> GymnasiumEnvironment:
            with reported("start"):
                env = make(self.id, self.make)
            return GymnasiumEnvironment(env, meaning, locate, self.returns, self.repeat)

        yield start

    def training_tasks(self) -> list[CUATask]:
        """One task: the environment."""
        name = self.id.rpartition(":")[2].rpartition("/")[2]
        return [CUATask(f"gymnasium/{self.id}", name, self.goal, "medium", name, self.max_steps, OwnScore())]

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same one on other seeds; there are no others."""
        return self.training_tasks() if split == "seeds" else []

    def _meaning(self) -> Callable[[Action], Any]:
        if self.mapping is None:
            return Tables(self.actions, self.presses, self.taps, self.wait)
        function: Callable[[Action], Any] = load(self.mapping, "env.args.mapping")
        return function


def _nowhere(_name: str) -> None:
    return None
