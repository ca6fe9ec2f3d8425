"""What is played: which tasks training draws, for how many turns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """Which tasks training draws."""

    strategy: Literal["uniform", "difficulty"] = Field(
        default="uniform",
        description="uniform: categories and their tasks take turns; difficulty: tasks solved about half of the time "
        "come first",
    )
    floor: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="difficulty: share of draws that stays uniform, so that no task is forgotten",
    )
    half_life: float = Field(
        default=10.0, gt=0, description="difficulty: steps after which what was seen of a task counts half"
    )
    turns_start: int | None = Field(
        default=None,
        ge=1,
        description="curriculum: turns allowed in the first groups, growing to rollout.max_turns; null: no curriculum",
    )
    turns_steps: int = Field(
        default=20, ge=1, description="curriculum: over how many steps (of rollout.groups_per_step groups) it grows"
    )


@dataclass(frozen=True, config=STRICT)
class ReplayConfig:
    """Past successes, for tasks whose whole group failed."""

    share: float = Field(
        default=0.0, ge=0, le=0.5, description="most of a failed group's episodes that past successes replace; 0: none"
    )
    per_task: int = Field(default=4, ge=1, description="successes of a task that are kept, the newest")
    max_age: int = Field(
        default=20, ge=1, description="most policy versions between a replayed token and its update, a bound of its own"
    )
