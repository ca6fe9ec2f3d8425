"""Attention within sequences that are packed behind one another in one row, without a mask of T x T entries.

transformers tells packed sequences apart with such a mask, which costs memory and keeps PyTorch from its flash kernel.
Here every sequence is an attention of its own, through transformers' own extension point and its own names for where
sequences begin and end. In half precision on a CUDA device one kernel does them all (`torch.nn.attention.varlen`);
elsewhere each is a scaled dot product.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cua_agent.models.architecture import language_model_of
from cua_agent.models.transfer import sent

PACKED_SDPA = "packed_sdpa"
"""Stands for "sdpa" in a model's configuration: the same, but for rows with `packed_rows`."""

_AMPERE = (8, 0)
_CAUSAL_WINDOW = (-1, 0)


def use_packed_attention(model: Any) -> None:
    """Let the language model of `model` take `packed_rows`, in place; not one that attends in sliding windows."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = language_model_of(model).config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return
    AttentionInterface.register(PACKED_SDPA, packed_causal_attention)
    AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
    config._attn_implementation = PACKED_SDPA


def takes_packed_rows(model: Any) -> bool:
    """Whether `use_packed_attention` was applied to `model`, or to what it is a copy of."""
    return bool(language_model_of(model).config._attn_implementation == PACKED_SDPA)


def packed_rows(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """The model's arguments that say where sequences of these `lengths` lie in its one row; no mask is built."""
    ends = torch.tensor(lengths).cumsum(0)
    boundaries = sent(torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int(), device)
    return {
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.int64, device=device),  # one of 4 dimensions is left alone
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence, see `attend_within`; without `cu_seq_lens_q`, transformers' own
    "sdpa"."""
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return attended, None
    attended = attend_within(
        query, key, value, cu_seq_lens_q, max_length_q, causal=True, scaling=scaling, dropout=dropout
    )
    return attended, None


def attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int | None,
    *,
    causal: bool,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Query [1, heads, T, d], key and value [1, fewer heads, T, d] of packed sequences -> [1, T, heads, d].

    Sequence i lies from `boundaries[i]` to `boundaries[i + 1]` (int32 [n + 1]) and has `longest` tokens at most; where
    no kernel takes them all, neighbours of equal length form one batch.
    """
    varlen = _varlen_kernel(query) if not dropout else None
    if varlen is not None:
        rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        longest = longest or int(torch.diff(boundaries).max())
        window = _CAUSAL_WINDOW if causal else (-1, -1)
        attended: Tensor = varlen(*rows, boundaries, boundaries, longest, longest, scale=scaling, window_size=window)
        return attended[None]
    outputs, start = [], 0
    for length, run in groupby(torch.diff(boundaries).tolist()):
        count = len(list(run))
        stop = start + count * length
        q, k, v = (_as_batch(tensor[0, :, start:stop], count) for tensor in (query, key, value))
        part = scaled_dot_product_attention(
            q, k, v, is_causal=causal, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(part.transpose(1, 2).reshape(1, stop - start, *query.shape[1::2]))
        start = stop
    return torch.cat(outputs, dim=1)


def _varlen_kernel(query: Tensor) -> Callable[..., Any] | None:
    """PyTorch's attention over packed sequences, if there is one for such a `query`."""
    if not query.is_cuda or query.dtype == torch.float32 or query.shape[-1] % 8:
        return None
    return _varlen_on(query.device)


@cache
def _varlen_on(device: torch.device) -> Callable[..., Any] | None:
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    options = inspect.signature(varlen_attn).parameters
    if "window_size" not in options:  # before torch 2.11
        return None
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in options else varlen_attn


def _as_batch(packed: Tensor, count: int) -> Tensor:
    """[heads, count * length, d] -> [count, heads, length, d]."""
    heads, total, width = packed.shape
    return packed.reshape(heads, count, total // count, width).transpose(0, 1)
