"""What an OpenEnv server can be told. Does not need openenv."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.envs.openenv.mapping import VALUES, filled
from cua_agent.options import STRICT, Name, without_user

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(without_user)]
Path = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]


def _one_task() -> dict[str, dict[str, Any]]:
    return {"default": {}}


def _plain_actions() -> dict[str, Any]:
    return {kind: {"type": kind, **{name: f"{{{name}}}" for name in names}} for kind, names in VALUES.items()}


@dataclass(frozen=True, config=STRICT)
class OpenEnvSettings:
    """Where the server is, and what its actions and observations look like."""

    base_url: Url = Field(default="http://127.0.0.1:8000", description="address of the server")
    resets: dict[Name, dict[str, Any]] = Field(
        default_factory=_one_task,
        min_length=1,
        description="the tasks by name, each with the arguments of the server's reset besides the seed",
    )
    goal: str = Field(default="Do what the screen asks for.", min_length=1, description="what the agent is told")
    goal_field: Path | None = Field(
        default=None, description="the text in the first observation that is told instead; null: none"
    )
    screenshot: Path = Field(default="screenshot", description="the picture in an observation")
    error_field: Path | None = Field(
        default=None, description="the text in an observation that says why an action did nothing; null: none"
    )
    actions: dict[str, dict[str, Any]] = Field(
        default_factory=_plain_actions,
        min_length=1,
        description="the server's action for each kind of the agent's, with {x}, {y}, {text}, ... in it",
    )
    returns: tuple[float, float] = Field(default=(0.0, 1.0), description="sums of rewards that score 0 and 1")
    max_steps: int = Field(default=20, ge=1, description="turns of an episode")

    @model_validator(mode="after")
    def _consistent(self) -> OpenEnvSettings:
        for kind, template in self.actions.items():
            if kind not in VALUES:
                raise ValueError(f"actions names {kind!r}; allowed: {', '.join(VALUES)}")
            allowed = ", ".join(f"{{{name}}}" for name in VALUES[kind])
            try:
                filled(template, dict.fromkeys(VALUES[kind], 0))
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"actions.{kind}={template}: {error}; allowed in it: {allowed}") from error
        if self.returns[0] == self.returns[1]:
            raise ValueError(f"returns={list(self.returns)}: two different sums are wanted")
        return self
