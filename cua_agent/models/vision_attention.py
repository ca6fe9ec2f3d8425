"""Attention of the vision tower over many screenshots of one size in a single call.

transformers' vision towers attend image by image in a Python loop unless the attention implementation takes packed
sequences ("flash"). This one does, through transformers' own extension point, with PyTorch's scaled dot product:
images of equal size become one batch. The numbers are those of the loop.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PACKED_ATTENTION = "packed_sdpa_flash"  # transformers hands packed sequences to names that contain "flash"


def use_packed_vision_attention(model: Any) -> None:
    """Let the vision tower of a Qwen-VL model (`model.model.visual`) attend to equal-sized images together."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    model.model.visual.config._attn_implementation = PACKED_ATTENTION


def packed_attention(
    module: torch.nn.Module,  # noqa: ARG001 - part of transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed sequence: query, key, value [1, heads, S, d] -> [1, S, heads, d].

    `cu_seq_lens_q` int32 [n + 1] holds the sequences' boundaries; neighbours of equal length form one batch.
    """
    lengths = torch.diff(cu_seq_lens_q).tolist()
    outputs, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        stop = start + count * length
        q, k, v = (_as_batch(tensor[0, :, start:stop], count) for tensor in (query, key, value))
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(1, stop - start, *query.shape[1::2]))
        start = stop
    return torch.cat(outputs, dim=1), None


def _as_batch(packed: Tensor, count: int) -> Tensor:
    """[heads, count * length, d] -> [count, heads, length, d]."""
    heads, total, width = packed.shape
    return packed.reshape(heads, count, total // count, width).transpose(0, 1)
