"""The world: which one, its options, and which of its tasks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core.core_schema import ValidationInfo

from cua_agent.envs.guard import TIMEOUT_S
from cua_agent.envs.registry import MIX, all_options, make_world
from cua_agent.envs.world import World
from cua_agent.options import STRICT


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """The world the agent acts in."""

    name: str = Field(
        default="pocket",
        description="pocket (simulated phone), miniwob (MiniWoB++ in Chromium), gbox (GBox boxes), gymnasium, mix "
        "(several of them: env.mix={pocket:0.5,miniwob:0.5}), the name of a world that a package brings, or "
        "package.module:factory",
    )
    tasks: tuple[str, ...] = Field(default=(), description="task categories; empty: all")
    args: dict[str, Any] = Field(
        default_factory=dict, validate_default=True, description="options of the world; see below"
    )

    timeout_s: float = Field(
        default=TIMEOUT_S, gt=0, description="longest wait for an action or a start; then the environment is replaced"
    )
    price_per_box_hour: float = Field(
        default=0.0, ge=0, description="what an hour of an environment costs, for compare.py; 0: nobody knows"
    )

    @field_validator("args")
    @classmethod
    def _complete(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Checked by the world, which also fills in its defaults."""
        return all_options(info.data["name"], args) if "name" in info.data else args

    @property
    def names(self) -> set[str]:
        """The worlds by name: this one, or those of a mixture."""
        parts = self.args["worlds"].items() if self.name == MIX else ()
        return {part["world"] or name for name, part in parts} or {self.name}

    @property
    def world(self) -> World:
        """The world, made anew."""
        return make_world(self.name, self.args)
