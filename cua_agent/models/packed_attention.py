"""Attention within sequences that are packed behind one another in one row, without a mask of T x T entries.

transformers tells packed sequences apart with such a mask, which costs memory and keeps PyTorch from its flash kernel.
Here every sequence is a causal attention of its own, through transformers' own extension point.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PACKED_SDPA = "packed_sdpa"
"""Stands for "sdpa" in a model's configuration: the same, but for rows with `sequence_lengths`."""


def use_packed_attention(model: Any) -> None:
    """Let the language model of `model` take `sequence_lengths`, in place; not one that attends in sliding windows."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = _config(model)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return
    AttentionInterface.register(PACKED_SDPA, packed_causal_attention)
    AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
    config._attn_implementation = PACKED_SDPA


def takes_packed_rows(model: Any) -> bool:
    """Whether `use_packed_attention` was applied to `model`, or to what it is a copy of."""
    return bool(_config(model)._attn_implementation == PACKED_SDPA)


def _config(model: Any) -> Any:
    """The configuration that the language model and its layers share."""
    return getattr(model.model, "language_model", model.model).config


def packed_causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sequence_lengths: Sequence[int] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Query [1, heads, T, d], key and value [1, fewer heads, T, d] of packed sequences -> [1, T, heads, d]; neighbours
    of equal length form one batch. Without `sequence_lengths`, transformers' own "sdpa"."""
    if sequence_lengths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return attended, None
    outputs, start = [], 0
    for length, run in groupby(sequence_lengths):
        count = len(list(run))
        stop = start + count * length
        q, k, v = (_as_batch(tensor[0, :, start:stop], count) for tensor in (query, key, value))
        attended = scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).reshape(1, stop - start, *query.shape[1::2]))
        start = stop
    return torch.cat(outputs, dim=1), None


def _as_batch(packed: Tensor, count: int) -> Tensor:
    """[heads, count * length, d] -> [count, heads, length, d]."""
    heads, total, width = packed.shape
    return packed.reshape(heads, count, total // count, width).transpose(0, 1)
