"""`env=pocket`: simulated phones, in process."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.envs.base import Environment
from cua_agent.envs.pocket import long_tasks, tasks
from cua_agent.envs.pocket.state import Layout
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.options import STRICT
from cua_agent.tasks import CUATask, EvalSplit


@dataclass(frozen=True, config=STRICT)
class LatencyOptions:
    """Delay that every action costs: stands for a cloud box's round trip."""

    kind: Literal["none", "constant", "lognormal"] = Field(default="none", description="distribution of the delay")
    mean_s: float = Field(default=0.0, ge=0, description="mean delay of an action in seconds")
    sigma: float = Field(
        default=1.0, gt=0, description="lognormal: sigma of the underlying normal; 1 gives a heavy tail"
    )

    @model_validator(mode="after")
    def _consistent(self) -> LatencyOptions:
        if (self.kind == "none") != (self.mean_s == 0):
            raise ValueError(f"kind={self.kind} with mean_s={self.mean_s:g}; a delay needs a kind and mean_s > 0")
        return self


@dataclass(frozen=True, config=STRICT)
class PocketWorld:
    """Simulated Android phones."""

    DESCRIBES_SCREENS = True
    FORKS = True

    layout: Layout = Field(default="shuffled", description="order of the home screen")
    scale: int = Field(default=1, ge=1, le=8, description="screenshot pixels per logical pixel")
    horizon: Literal["short", "long"] = Field(
        default="short", description="tasks of a few turns, or the families that take eight and more"
    )
    latency: LatencyOptions = Field(default_factory=LatencyOptions)

    def check(self) -> None:
        """It needs nothing."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """Every phone draws its own delays, the same in every run."""
        from cua_agent.envs.pocket.environment import PocketEnvironment
        from cua_agent.envs.pocket.latency import Latency

        delay, seeds = self.latency, itertools.count()

        async def new_phone() -> Environment:
            latency = Latency(delay.kind, delay.mean_s, delay.sigma, seed=next(seeds))
            return PocketEnvironment(self.layout, self.scale, latency)

        yield new_phone

    def training_tasks(self) -> list[CUATask]:
        """Every goal of every training family."""
        return long_tasks.training_tasks() if self.horizon == "long" else tasks.training_tasks()

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """The same goals, or held-out wordings and combinations."""
        return long_tasks.eval_tasks(split) if self.horizon == "long" else tasks.eval_tasks(split)
