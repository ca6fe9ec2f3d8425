"""Trajectories as AReaL's tensors, and the filter that AReaL applies to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import NO_VERSION, Trajectory
from trainers.config import AdvantageConfig
from trainers.grpo.credit import step_advantages, token_steps
from trainers.grpo.relative import MIN_COMPARED
from trainers.grpo.tokens import action_tokens

TensorDict = dict[str, Any]


def rows_to_tensors(policy: PolicyModel, rows: Sequence[Trajectory], *, pixels: bool = True) -> TensorDict:
    """AReaL's contract for B rows of at most L tokens.

    `input_ids` int64, `loss_mask` int32, `logprobs` float32, `versions` int32, `attention_mask` bool and
    `mm_token_type_ids` int64 (1 on image placeholders), all [B, L]; `rewards` float32 [B]; `multi_modal_input`, a
    mapping of `pixel_values` (bytes, as `PolicyModel.image_bytes` gives them; a forward pass makes pixels of its own)
    and `image_grid_thw` a row (with `pixels`, when there are images). Ours besides:
    `predicts` int32 [B, L] (1 on what predicts a trained token, one place before it), likewise `actions` (of a tool
    call; absent where these cannot be told), and [B] `group` and `episode`
    (int64: numbered in the order of their first row) and `weight` (float32, 1 / rows of the episode).
    """
    ids = [torch.from_numpy(np.ascontiguousarray(row.input_ids)) for row in rows]
    input_ids = padded(ids, policy.special.pad_id)
    tensors: TensorDict = {
        "input_ids": input_ids,
        "attention_mask": padded([torch.ones(len(row), dtype=torch.bool) for row in rows], 0),
        "loss_mask": padded([torch.from_numpy(row.loss_mask) for row in rows], 0),
        "predicts": padded([torch.from_numpy(np.roll(row.loss_mask, -1)) for row in rows], 0),
        "logprobs": padded([torch.from_numpy(np.where(row.loss_mask, row.logprobs, 0)) for row in rows], 0.0),
        "versions": padded([torch.from_numpy(row.versions) for row in rows], NO_VERSION),
        "rewards": torch.tensor([row.reward for row in rows], dtype=torch.float32),
        "mm_token_type_ids": (input_ids == policy.special.image_token_id).long(),
        "group": _numbered([row.group_id for row in rows]),
        "episode": _numbered([row.episode_id for row in rows]),
        "weight": torch.tensor([row.weight for row in rows], dtype=torch.float32),
    }
    if (actions := action_tokens(input_ids, tensors["loss_mask"], policy.special.call_id)) is not None:
        tensors["actions"] = actions.int().roll(-1, dims=-1)
    if pixels and any(row.images for row in rows):
        tensors["multi_modal_input"] = [_images(policy, row) if row.images else {} for row in rows]
    return tensors


def with_steps(tensors: TensorDict, rows: Sequence[Trajectory], config: AdvantageConfig) -> TensorDict:
    """The tensors of a group, made of `rows`, and in `step_advantages`, float32 [B, L], what each turn adds to the
    advantage of its tokens, where these are predicted; nothing more with `credit=episode`."""
    if config.credit == "episode":
        return tensors
    steps = [token_steps(*each) for each in zip(rows, step_advantages(rows, config), strict=True)]
    return {**tensors, "step_advantages": padded([torch.from_numpy(each) for each in steps], 0.0).roll(-1, dims=-1)}


def packed_row_numbers(data: Mapping[str, Any]) -> Tensor:
    """int64 [T]: which row of a micro-batch each of its T packed positions belongs to; its boundaries are `cu_seqlens`.
    A padded one has B * L positions."""
    mask = data["loss_mask"]
    if mask.ndim == 2:
        return torch.arange(len(mask), device=mask.device).repeat_interleave(mask.shape[1])
    lengths = torch.diff(data["cu_seqlens"])
    rows = torch.arange(len(lengths), device=mask.device)
    return rows.repeat_interleave(lengths.to(mask.device), output_size=mask.numel())


def carries_signal(group: Mapping[str, Any], config: AdvantageConfig) -> bool:
    """Whether the rewards of a group's episodes differ: AReaL's `should_accept_fn`; agrees with `has_signal`. One
    that is not finite is let through, to be refused where its episode can be named."""
    first = first_rows(group["episode"])
    rewards = group["rewards"][first].double()
    if not rewards.isfinite().all():
        return True
    std = float(rewards.std(correction=0)) if len(rewards) >= MIN_COMPARED else 0.0
    return std > 0 and std >= config.min_group_std


def first_rows(numbers: Tensor) -> Tensor:
    """Indices int64 of the rows at which a new number appears, in order; `numbers` int64 [B]."""
    seen: dict[int, int] = {}
    for index, number in enumerate(numbers.tolist()):
        seen.setdefault(number, index)
    return torch.tensor(list(seen.values()), dtype=torch.int64, device=numbers.device)


def padded(tensors: list[Tensor], fill: float) -> Tensor:
    """[B, L]: B tensors of at most L entries, padded on the right with `fill`."""
    stacked: Tensor = pad_sequence(tensors, batch_first=True, padding_value=fill)
    return stacked


def _numbered(names: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)


def _images(policy: PolicyModel, row: Trajectory) -> dict[str, Tensor]:
    pixels, image_grid_thw = policy.image_bytes(row.images)
    return {"pixel_values": pixels, "image_grid_thw": image_grid_thw}


_PER_TOKEN = ("loss_mask", "logprobs", "versions", "advantages", "coefficients")


def shifted(tensors: TensorDict) -> TensorDict:
    """The same with every per-token entry moved to the position before its token, the one that predicts it: where
    AReaL's losses look. (AReaL's `compute_advantages` moves its own.)"""
    moved = {name: tensors[name].roll(-1, dims=-1) for name in _PER_TOKEN if name in tensors}
    return {**tensors, **moved}
