"""Log-probabilities of the sampled tokens of a micro-batch, the way the engine that sampled them computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cua_agent.models.packed_attention import packed_rows, takes_packed_rows
from cua_agent.models.policy import PolicyModel, SpecialTokens
from trainers.grpo.batching import MicroBatch
from trainers.grpo.loss import LossInputs

HEAD_ROWS = 512
"""Positions whose logits exist at a time: over 151,936 tokens, 0.3 GB in float32."""


@dataclass(frozen=True)
class TokenScores:
    """Of the N trained tokens of a micro-batch, in row-major order: `logprobs` and the `entropy` of the distribution
    each was drawn from, both float32 [N]."""

    logprobs: Tensor
    entropy: Tensor


def score_tokens(
    policy: PolicyModel, micro: MicroBatch, temperature: float, *, entropy_gradient: bool = False
) -> TokenScores:
    """Score the trained tokens under the policy's sampling distribution: softmax(logits / temperature) over the
    tokens that may be sampled.

    The language-model head runs on the N positions that predict a trained token only (see `score_hidden`), and the
    softmax in float32.
    `micro` must be on the policy's device. Without `entropy_gradient` the entropy is a metric and keeps no graph.
    """
    tokens = micro.of_trained(micro.input_ids)
    head = policy.base_model.lm_head
    hidden = _predicting_states(policy, micro)
    return score_hidden(head, hidden, tokens, policy.special, temperature, entropy_gradient=entropy_gradient)


def score_hidden(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    special: SpecialTokens,
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> TokenScores:
    """Score `tokens` int64 [N], each predicted from a state of `hidden` [N, width]; `head` makes logits of states,
    of which the banned of `special` do not count.

    Logits exist for `HEAD_ROWS` positions at a time; of several such chunks, the backward pass computes them again.
    """
    score = partial(_score_chunk, head, special, temperature, entropy_gradient)
    chunks = list(zip(torch.split(hidden, HEAD_ROWS), torch.split(tokens, HEAD_ROWS), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        scores = [score(*chunk) for chunk in chunks]
    else:
        scores = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
    logprobs, entropy = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return TokenScores(logprobs, entropy)


def _score_chunk(
    head: Callable[[Tensor], Tensor],
    special: SpecialTokens,
    temperature: float,
    entropy_gradient: bool,
    hidden: Tensor,
    tokens: Tensor,
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    is_banned = special.is_banned(logits.shape[-1], logits.device)
    distribution = logits.masked_fill_(is_banned, -torch.inf).log_softmax(-1)
    logprobs = distribution.gather(-1, tokens[:, None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(distribution.exp() * distribution.masked_fill(is_banned, 0)).sum(-1)
    return logprobs, entropy


@torch.no_grad()
def reference_logprobs(policy: PolicyModel, micro: MicroBatch, temperature: float) -> Tensor:
    """float32 [N]: log-probs of the trained tokens under the frozen reference policy."""
    with policy.reference():
        return score_tokens(policy, micro, temperature).logprobs


def loss_inputs(micro: MicroBatch, scores: TokenScores, reference: Tensor | None = None) -> LossInputs:
    """Line up what the rollout recorded with what the training forward computed, token by token.

    The update starts from the weights that computed `scores`, which makes them the proximal policy.
    """
    return LossInputs(
        logprobs=scores.logprobs,
        old_logprobs=micro.of_trained(micro.old_logprobs),
        advantages=micro.of_trained(micro.advantages),
        coefficients=micro.coefficients[micro.rows],
        entropy=scores.entropy,
        rows=micro.rows,
        reference_logprobs=reference,
        proximal_logprobs=scores.logprobs.detach(),
        actions=None if micro.actions is None else micro.of_trained(micro.actions),
    )


def _predicting_states(policy: PolicyModel, micro: MicroBatch) -> Tensor:
    """[N, width], of the positions one before each trained token."""
    predicts = micro.trained_at - 1  # column 0 is never trained, so all are in the row of their token
    images = _pixels(policy, micro)
    if not takes_packed_rows(policy.base_model):
        padded = policy.hidden_states(
            micro.input_ids, micro.attention_mask, micro.position_ids, images, use_cache=False
        )
        return padded.flatten(0, 1)[predicts]

    def without_padding(values: Tensor) -> Tensor:
        """[..., B, L] -> [..., T], row behind row."""
        rows = (values[..., row, :length] for row, length in enumerate(micro.lengths))
        return torch.cat(list(rows), dim=-1)

    packing = packed_rows(micro.lengths, micro.input_ids.device)
    packed = policy.hidden_states(
        input_ids=without_padding(micro.input_ids)[None],
        position_ids=without_padding(micro.position_ids)[:, None],
        pixels=images,
        use_cache=False,
        **packing,
    )
    begins = packing["cu_seq_lens_q"][micro.rows]
    return packed[0, begins + predicts % micro.input_ids.shape[1]]


def _pixels(policy: PolicyModel, micro: MicroBatch) -> tuple[Tensor | None, Tensor | None]:
    if micro.image_bytes is None or micro.image_grid_thw is None:
        return None, None
    return policy.pixel_values(micro.image_bytes, micro.image_grid_thw), micro.image_grid_thw
