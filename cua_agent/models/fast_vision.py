"""The vision tower over many screenshots of one size without a Python loop over the screenshots.

transformers' Qwen-VL towers attend image by image unless the attention implementation takes packed sequences ("flash"),
and build position embeddings image by image. Here images of equal size become one batch for PyTorch's scaled dot
product, through transformers' own extension point, and positions are built once per size. On a CPU an image that is
there several times (episodes of a group begin on one screen, and screens recur) is computed once. The numbers are the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cua_agent.models.packed_attention import attend_within

PACKED_ATTENTION = "packed_sdpa_flash"  # transformers hands packed sequences to names that contain "flash"


def use_fast_vision(model: Any) -> None:
    """Speed up the vision tower of a Qwen3-VL model (`model.model.visual`) in place, and in copies of it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    tower = model.model.visual
    tower.config._attn_implementation = PACKED_ATTENTION
    # Methods, because a deep copy binds those to itself.
    for name in ("fast_pos_embed_interpolate", "rot_pos_emb"):
        setattr(tower, name, MethodType(_once_per_size(name), tower))
    tower.forward = MethodType(_look_once, tower)


def _once_per_size(name: str) -> Callable[[Any, Tensor], Tensor]:
    """The tower's method `name`, which maps grids [n, 3] to rows for every patch, image after image; equal neighbours
    share the computation."""

    def embed_runs(tower: Any, grid_thw: Tensor) -> Tensor:
        embed = getattr(type(tower), name).__get__(tower)
        runs = [(grid, len(list(run))) for grid, run in groupby(grid_thw.tolist())]
        parts = [(embed(torch.tensor([grid], device=grid_thw.device)), count) for grid, count in runs]
        return torch.cat([part.repeat(count, *[1] * (part.dim() - 1)) for part, count in parts])

    return embed_runs


def _look_once(tower: Any, hidden_states: Tensor, grid_thw: Tensor, **options: Any) -> Any:
    """The tower's own forward pass over patches [P, features] of images with grids [n, 3], on different images only. A
    GPU would have to be waited for to know which are alike."""
    look = type(tower).forward.__get__(tower)
    sizes = grid_thw.prod(-1).tolist()
    if hidden_states.is_cuda or len(sizes) < 2:
        return look(hidden_states, grid_thw, **options)
    images = torch.split(hidden_states, sizes)
    firsts, which = _alike(images, grid_thw.tolist())
    if len(firsts) == len(images):
        return look(hidden_states, grid_thw, **options)
    seen = look(torch.cat([images[i] for i in firsts]), grid_thw[firsts], **options)

    def for_all(parts: Tensor, per_token: int) -> Tensor:
        each = torch.split(parts, [sizes[i] // per_token for i in firsts])
        return torch.cat([each[n] for n in which])

    merged = tower.spatial_merge_size**2
    seen.last_hidden_state = for_all(seen.last_hidden_state, 1)
    seen.pooler_output = for_all(seen.pooler_output, merged)
    seen.deepstack_features = [for_all(layer, merged) for layer in seen.deepstack_features]
    return seen


def _alike(images: Sequence[Tensor], grids: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    """The first of every kind of image, and which of these kinds each image is. Sums tell candidates, values decide."""
    firsts: list[int] = []
    which: list[int] = []
    kinds: dict[tuple[float, ...], list[int]] = {}
    for index, (image, grid) in enumerate(zip(images, grids, strict=True)):
        candidates = kinds.setdefault((float(image.sum()), *grid), [])
        kind = next((n for n in candidates if torch.equal(images[firsts[n]], image)), None)
        if kind is None:
            kind = len(firsts)
            firsts.append(index)
            candidates.append(kind)
        which.append(kind)
    return firsts, which


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
    """Attention within each image: query, key, value [1, heads, S, d] -> [1, S, heads, d].

    `cu_seq_lens_q` int32 [n + 1] holds the images' boundaries. transformers' `max_length_q` is a tensor on the device,
    which every block would wait for; the longest image is looked up once for all blocks.
    """
    return attend_within(query, key, value, cu_seq_lens_q, _longest(cu_seq_lens_q), causal=False, scaling=scaling), None


def _longest(boundaries: Tensor) -> int:
    """The longest of the sequences between `boundaries`, which every block of the tower is handed in turn."""
    known: int | None = getattr(boundaries, "longest_sequence", None)
    if known is None:
        known = boundaries.longest_sequence = int(torch.diff(boundaries).max())  # type: ignore[attr-defined]
    return known
