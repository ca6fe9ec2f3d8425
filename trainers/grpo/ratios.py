"""Probability ratios of two policies on trained tokens, each token by itself or all of a row together."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.grpo.kl import MAX_LOG_RATIO


def log_ratio(logprobs: Tensor, others: Tensor) -> Tensor:
    """log pi / pi' per token, within +-`MAX_LOG_RATIO`."""
    return (logprobs - others).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def row_sums(values: Tensor, rows: Tensor) -> Tensor:
    """[N]: on every token the sum of `values` [N] over the tokens of its row; `rows` int64 [N] numbers the rows."""
    sums = values.new_zeros(int(rows.max()) + 1 if rows.numel() else 0)
    return sums.index_add(0, rows, values)[rows]


def row_means(values: Tensor, rows: Tensor, counted: Tensor | None = None) -> Tensor:
    """[N]: on every token the mean of `values` [N] over the tokens of its row, of those that are `counted` (bool [N];
    None: all), 0 where none is. Of log ratios: the log of the geometric mean of the row's ratios, the sequence-level
    ratio of GSPO (arXiv 2507.18071, equation 7)."""
    counted = torch.ones_like(rows, dtype=torch.bool) if counted is None else counted
    return row_sums(torch.where(counted, values, 0), rows) / row_sums(counted.to(values.dtype), rows).clamp(min=1)
