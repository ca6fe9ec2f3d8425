"""Sampling of a batch of rows, each with its own temperature and its own random number."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor, temperatures: Tensor, greedy: Tensor, uniforms: Tensor, banned: Tensor
) -> tuple[Tensor, Tensor]:
    """One token per row by inverse transform sampling, and its log-probability.

    `logits` [n, vocab], `temperatures` float32 [n] (1 on greedy rows), `greedy` bool [n], `uniforms` float64 [n] in
    [0, 1), `banned` int64 ids that get probability 0. Returns `tokens` int64 [n] and `logprobs` float32 [n] under
    softmax(logits / temperature). A row's result depends on that row alone, whoever shares the batch.
    """
    allowed = logits.float().index_fill(-1, banned, -torch.inf)
    logprobs = (allowed / temperatures[:, None]).log_softmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    # Rounding must not lead into banned ids at the end, nor NaN beyond it.
    last_possible = torch.searchsorted(cumulative, total).clamp(max=logits.shape[-1] - 1)
    tokens = torch.where(greedy, allowed.argmax(-1), torch.minimum(drawn, last_possible)[:, 0])
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
