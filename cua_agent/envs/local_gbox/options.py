"""What the local GBox can be told."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from cua_agent.envs.local_gbox.faults import FaultPlan, FaultSource
from cua_agent.envs.local_gbox.phone import MAX_PIXEL_SCALE
from cua_agent.envs.pocket.latency import Latency
from cua_agent.envs.pocket.state import Layout

DEFAULT_KEY = "local"


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class LocalGBoxOptions:
    """Settings of a server. `hang_s` is how long a time-out fault keeps the connection open without an answer."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535, description="0: a free one")
    api_key: str = Field(default=DEFAULT_KEY, min_length=1, description="the bearer key that clients must show")
    seed: int = Field(default=0, ge=0, description="of box ids, first phone states and latencies")
    layout: Layout = Field(default="shuffled", description="of phones that are not told otherwise")
    scale: int = Field(default=1, ge=1, le=MAX_PIXEL_SCALE, description="screen size, times 128 x 224 pixels")
    quota: int | None = Field(default=None, ge=1, description="boxes at a time; more are refused with 429")
    action_latency: Latency = Field(default_factory=Latency, description="of actions, screenshots and commands")
    create_latency: Latency = Field(default_factory=Latency, description="until a new box runs")
    faults: FaultSource = Field(default_factory=FaultPlan)
    hang_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    slow_create_s: float = Field(default=60.0, gt=0, allow_inf_nan=False, description="what a slow create takes longer")
    retry_after_s: int = Field(default=1, ge=0, description="what a 429 asks for")
