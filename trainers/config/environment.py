"""The world: environment and its latency."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.envs.guard import TIMEOUT_S
from trainers.config.gbox import ANDROID_FAMILIES, GBoxConfig
from trainers.config.types import PathText
from trainers.config.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class LatencyConfig:
    """Delay that every action on `pocket` costs: stands for a cloud box's round trip."""

    kind: Literal["none", "constant", "lognormal"] = Field(default="none", description="distribution of the delay")
    mean_s: float = Field(default=0.0, ge=0, description="mean delay of an action in seconds")
    sigma: float = Field(
        default=1.0, gt=0, description="lognormal: sigma of the underlying normal; 1 gives a heavy tail"
    )

    @model_validator(mode="after")
    def _consistent(self) -> LatencyConfig:
        if (self.kind == "none") != (self.mean_s == 0):
            raise ValueError(f"kind={self.kind} with mean_s={self.mean_s:g}; a delay needs a kind and mean_s > 0")
        return self


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """The world the agent acts in."""

    name: Literal["pocket", "miniwob", "gbox"] = Field(
        default="pocket", description="simulated phone, MiniWoB++ in Chromium, or GBox boxes"
    )
    layout: Literal["fixed", "themed", "shuffled"] = Field(
        default="shuffled", description="simulated phone: order of the home screen"
    )
    scale: int = Field(default=1, ge=1, le=8, description="simulated phone: screenshot pixels per logical pixel")
    latency: LatencyConfig = Field(default_factory=LatencyConfig)
    tasks: tuple[str, ...] = Field(default=(), description="task categories; empty: all")
    browser_path: PathText = Field(
        default="/usr/bin/chromium-headless-shell", description="miniwob: the browser's executable"
    )
    timeout_s: float = Field(
        default=TIMEOUT_S, gt=0, description="longest wait for an action or a start; then the environment is replaced"
    )
    gbox: GBoxConfig = Field(default_factory=GBoxConfig)

    @model_validator(mode="after")
    def _prepared(self) -> EnvConfig:
        if self.name == "gbox" and self.gbox.reset == "android":
            unknown = sorted(set(self.tasks) - set(ANDROID_FAMILIES))
            if unknown or not self.tasks:
                allowed = ", ".join(ANDROID_FAMILIES)
                raise ValueError(f"tasks={unknown} with gbox.reset=android; a real phone can be set up for {allowed}")
        return self
