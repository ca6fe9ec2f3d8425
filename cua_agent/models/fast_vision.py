"""The vision tower over many screenshots of one size without a Python loop over the screenshots.

transformers' Qwen-VL towers attend image by image unless the attention implementation takes packed sequences ("flash"),
and build position embeddings image by image. Here images of equal size become one batch for PyTorch's scaled dot
product, through transformers' own extension point, and positions are built once per size. On a CPU an image that is
there several times (episodes of a group begin on one screen, and screens recur) is computed once. A GPU is not asked
for anything, so that the CPU goes ahead of it, where grids are in main memory (FSDP of several processes moves them to
the card). The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cua_agent.models.packed_attention import attend_within
from cua_agent.models.transfer import sent

PACKED_ATTENTION = "packed_sdpa_flash"  # transformers hands packed sequences to names that contain "flash"


def use_fast_vision(model: Any) -> None:
    """Speed up the vision tower of a Qwen3-VL model (`model.model.visual`) in place, and in copies of it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    tower = model.model.visual
    tower.config._attn_implementation = PACKED_ATTENTION
    # Methods, because a deep copy binds those to itself.
    tower.fast_pos_embed_interpolate = MethodType(_once_per_size(_interpolated_positions), tower)
    tower.rot_pos_emb = MethodType(_once_per_size(lambda tower, grid: type(tower).rot_pos_emb(tower, grid)), tower)
    tower.forward = MethodType(_look_once, tower)
    backbone = model.model
    backbone.get_placeholder_mask = MethodType(_placeholder_masks, backbone)
    backbone.language_model._deepstack_process = _add_at


def _once_per_size(embed: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A method of the tower that maps grids [n, 3] to rows for every patch, image after image, as `embed` does for a
    single image; equal neighbours share the computation."""

    def embed_runs(tower: Any, grid_thw: Tensor) -> Tensor:
        runs = [(grid, len(list(run))) for grid, run in groupby(grid_thw.tolist())]
        parts = [(embed(tower, torch.tensor([grid])), count) for grid, count in runs]
        return torch.cat([part.repeat(count, *[1] * (part.dim() - 1)) for part, count in parts])

    return embed_runs


def _interpolated_positions(tower: Any, grid: Tensor) -> Tensor:
    """The tower's learned positions, between which an image of this `grid` [1, 3] lies: [patches, width]."""
    [[frames, rows, columns]] = grid.tolist()
    table = tower.pos_embed.weight
    corners, weights = _bilinear(tower.num_grid_per_side, tower.config.spatial_merge_size, rows, columns, table.device)
    four = tower.pos_embed(corners) * weights.to(table.dtype)[:, :, None]
    positions: Tensor = four[0] + four[1] + four[2] + four[3]
    return positions.repeat(frames, 1)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # training takes what sampling asked for first
def _bilinear(side: int, merge: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each of rows x columns patches, in the tower's order, its four neighbours in a table of side x side places,
    int64 [4, patches], and their weights, float32 [4, patches]."""
    down, across = (torch.linspace(0, side - 1, count) for count in (rows, columns))
    top, left = down.int(), across.int()
    bottom, right = ((near + 1).clip(max=side - 1) for near in (top, left))
    lower, further = (down - top)[:, None], (across - left)[None]
    corners = [row[:, None] * side + column[None] for row in (top, bottom) for column in (left, right)]
    weights = [(1 - lower) * (1 - further), (1 - lower) * further, lower * (1 - further), lower * further]
    patches = torch.arange(rows * columns).view(rows // merge, merge, columns // merge, merge)
    order = patches.transpose(1, 2).flatten()
    stacked = (torch.stack([each.flatten() for each in four])[:, order] for four in (corners, weights))
    indices, shares = (sent(values, device) for values in stacked)
    return indices.long(), shares


def _placeholder_masks(
    backbone: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor,
    image_features: Tensor | None = None,
    video_features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where the features of images and videos go, bool as `inputs_embeds`. transformers counts them here, which a GPU
    would have to be waited for; a row whose placeholders do not match its images has no positions there either
    (`PolicyModel.positions` raises)."""
    if input_ids is None or not inputs_embeds.is_cuda:
        stock: tuple[Tensor, Tensor] = type(backbone).get_placeholder_mask(
            backbone, input_ids, inputs_embeds, image_features, video_features
        )
        return stock
    image, video = (
        (input_ids == token)[..., None].expand_as(inputs_embeds).to(inputs_embeds.device)
        for token in (backbone.config.image_token_id, backbone.config.video_token_id)
    )
    return image, video


def _add_at(hidden_states: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """`hidden_states` [B, L, width] with `features` [n, width], n > 0, added where `places` [B, L] is set."""
    places, features = places.to(hidden_states.device), features.to(hidden_states)
    numbers = (places.flatten().cumsum(0) - 1).clamp(min=0)
    return torch.where(places[..., None], hidden_states + features[numbers].view_as(hidden_states), hidden_states)


def bring_grids(model: Any) -> None:
    """Let the vision tower of `model`, if it has one that is not fast, take grids in main memory as well: its kernels
    want them where the patches are."""
    towers = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "visual"]
    if not towers or getattr(towers[0].config, "_attn_implementation", None) == PACKED_ATTENTION:
        return

    def moved(_: Any, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        patches = given[0] if given else options["hidden_states"]
        if "grid_thw" in options:
            return given, {**options, "grid_thw": options["grid_thw"].to(patches.device)}
        return (patches, given[1].to(patches.device), *given[2:]), options

    towers[0].register_forward_pre_hook(moved, with_kwargs=True)


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
    boundaries, longest = _boundaries_on(query.device, cu_seq_lens_q)
    return attend_within(query, key, value, boundaries, longest, causal=False, scaling=scaling), None


def _boundaries_on(device: torch.device, boundaries: Tensor) -> tuple[Tensor, int]:
    """`boundaries`, which every block of the tower is handed in turn, on `device`, and the longest sequence between."""
    known: tuple[Tensor | None, int] | None = getattr(boundaries, "known", None)
    if known is None:
        moved = None if boundaries.device == device else sent(boundaries, device)
        boundaries.known = known = moved, int(torch.diff(boundaries).max())  # type: ignore[attr-defined]
    moved, longest = known
    return (boundaries if moved is None else moved), longest
