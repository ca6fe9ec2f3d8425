"""What one episode leaves behind: the token rows to train on and the record of its turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cua_agent.touch import Touch

NO_VERSION = -1
"""Policy version of tokens that no policy sampled (prompts, observations)."""


class Outcome(StrEnum):
    """How an episode ended."""

    SUCCESS = "success"
    FAILURE = "failure"  # the world ended the episode, goal not reached
    FALSE_CLAIM = "false_claim"  # reported complete, but the goal does not hold
    OUT_OF_TURNS = "out_of_turns"
    INFRA_ERROR = "infra_error"  # never reaches advantages: replaced, and counted


@dataclass(frozen=True)
class Turn:
    """Record of one turn: what the model said, what it meant, what came back, and how long it took.

    `action` is the parsed action as text (None when the call was malformed), `result` the observation's text,
    `screenshot` what the model looked at when it acted (None once dropped to save memory), `point` the normalised
    position acted on (None when the action has none). `truncated`: the token limit cut the turn off. `state` names the
    state of the world that the model acted in, or is the hash of its pixels (None when it was not kept). `reward` is
    what the turn brought by itself; what is left of the episode's came with its last turn. `touch` is what stood at
    `point` and near it (empty where nobody can tell).
    """

    text: str
    action: str | None
    result: str
    generate_s: float
    env_s: float
    point: tuple[int, int] | None = None
    truncated: bool = False
    state: str | None = None
    reward: float = 0.0
    screenshot: Image.Image | None = field(default=None, repr=False, compare=False)
    touch: tuple[Touch, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Fork:
    """Where an episode branched off: what comes before turn `turn` (from 0) is that of `episode_id`."""

    episode_id: str
    turn: int


@dataclass
class Trajectory:
    """One token row of an episode (`context=full`: the only one; `context=last_k`: one of several).

    Arrays have length L: `input_ids` int64, `loss_mask` int32 (1 on sampled tokens only), `logprobs` float32
    (of the sampled tokens at the sampling temperature, 0 elsewhere), `versions` int32 (weight version that served
    the token, -1 elsewhere). `images` are uint8 arrays [H, W, 3] in the order of their placeholders in `input_ids`.
    `weight` is 1 / (rows of the episode), so that every episode counts once; `score` is how well its goal held at the
    end, 0..1. `turns` are those of this row. An episode that branched off another says where (`fork`); what it has
    from there is in its rows, but not trained, and `turns` are its own ones. `trail` (a
    `cua_agent.trail.Trail`) is what others can branch off from; None once nobody will.
    """

    input_ids: npt.NDArray[np.int64] = field(repr=False)
    loss_mask: npt.NDArray[np.int32] = field(repr=False)
    logprobs: npt.NDArray[np.float32] = field(repr=False)
    versions: npt.NDArray[np.int32] = field(repr=False)
    images: list[npt.NDArray[np.uint8]] = field(repr=False)
    reward: float
    outcome: Outcome
    task_id: str
    group_id: str
    episode_id: str
    seed: int
    turns: tuple[Turn, ...] = ()
    weight: float = 1.0
    score: float = 0.0
    fork: Fork | None = None
    trail: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.input_ids)
        for name in ("loss_mask", "logprobs", "versions"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, input_ids has {n}")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def success(self) -> bool:
        """Whether the episode's outcome is a success."""
        return self.outcome is Outcome.SUCCESS
