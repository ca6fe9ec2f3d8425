"""The language-model head of a sharded model, on trained positions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cua_agent.models.policy import SpecialTokens
from trainers.grpo.forward import score_hidden


class ScoringHead:
    """Stands in for `lm_head`, so that the model answers with scores in place of logits: what FSDP gathers for the
    head is there only while the model runs, and AReaL's engine would keep the logits of every packed position.

    After `ask` the coming forward pass gives scores float32 [1, N, 2], log-prob and entropy, at the N places asked for;
    any other one gives logits.
    """

    def __init__(
        self, head: nn.Module, special: SpecialTokens, temperature: float, *, entropy_gradient: bool = False
    ) -> None:
        self._project = head.forward
        self._special = special
        self._temperature = temperature
        self._entropy_gradient = entropy_gradient
        self._tokens: Tensor | None = None
        head.forward = self._score  # type: ignore[method-assign]

    def ask(self, input_ids: Tensor, places: Tensor) -> dict[str, Tensor]:
        """The model's argument that limits the coming forward pass to `places` int64 [N] of `input_ids` int64
        [1, T]."""
        self._tokens = input_ids[0].roll(-1)[places]
        return {"logits_to_keep": places}

    def _score(self, hidden: Tensor) -> Tensor:
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            logits: Tensor = self._project(hidden)
            return logits
        scores = score_hidden(
            self._project,
            hidden[0],
            tokens,
            self._special,
            self._temperature,
            entropy_gradient=self._entropy_gradient,
        )
        return torch.stack([scores.logprobs[None], scores.entropy[None]], dim=-1)


def at_every_position(scores: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies float32 [T] of `scores` [N, 2], 0 where the model was not asked; `inputs` are those of
    its forward pass over T packed tokens."""
    length = inputs["input_ids"].shape[-1]
    logprobs, entropy = scores.new_zeros(length, 2).index_copy(0, inputs["logits_to_keep"], scores).unbind(-1)
    return logprobs, entropy
