"""The inference protocol: token ids and images in, sampled token ids with log-probabilities and versions out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

StopReason = Literal["stop", "length"]


class InferenceFailure(Exception):  # noqa: N818 (an event of the world, not a fault of the program)
    """The engine could not answer (dead server, time-out): costs the episode, which is replaced."""


@dataclass(frozen=True)
class GenerateRequest:
    """One turn to sample.

    `input_ids` is the whole conversation so far with one placeholder per image token (already expanded), `images` all
    its screenshots in order (uint8 [H, W, 3]). Requests of one episode share `conversation_id`; each extends the
    former's input and output exactly, so an engine may keep the KV cache. `seed` makes the sampling reproducible.
    """

    conversation_id: str
    input_ids: list[int]
    images: list[npt.NDArray[np.uint8]] = field(repr=False)
    max_new_tokens: int
    temperature: float = 1.0
    greedy: bool = False
    seed: int = 0


@dataclass(frozen=True)
class GenerateResponse:
    """Sampled tokens (the token that ended the turn included when `stop_reason` is "stop"; "length": the turn was cut).

    `logprobs[i]` is the log-probability of `output_ids[i]` under the sampling distribution (temperature applied,
    banned tokens excluded; greedy: at temperature 1), `versions[i]` the policy version that served it.
    """

    output_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    stop_reason: StopReason


class InferenceEngine(Protocol):
    """Serves many episodes at once; `generate` calls that wait together are batched together."""

    @property
    def version(self) -> int:
        """The policy version that the next token will be served with."""
        ...

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Sample one turn. Raises `InferenceFailure`."""
        ...

    def release(self, conversation_id: str) -> None:
        """Forget a conversation (its episode ended); unknown ids are ignored."""
        ...

    def update_weights(self, version: int) -> None:
        """The policy's weights changed and are now `version`: drop every cached activation of older ones."""
        ...

    async def close(self) -> None:
        """End running requests as lost and release what the engine holds."""
        ...
