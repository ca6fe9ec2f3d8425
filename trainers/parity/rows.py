"""Rung 0's view of a batch: every row as the loss of a backend sees it, in the order of the batch.

Of row i: `<i>/input_ids` int64 [L], `<i>/loss_mask` bool [L], `<i>/old_logprobs` and `<i>/advantages` float32 [n] and
`<i>/versions` int32 [n], of its n trained tokens, and `<i>/pixel_values`, `<i>/image_grid_thw` when it has images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cua_agent.models.policy import PolicyModel
from trainers.config import TrainConfig
from trainers.grpo.batching import micro_batches, split_rows, weigh_rows
from trainers.parity.evidence import Arrays
from trainers.protocol import Batch


def our_rows(policy: PolicyModel, batch: Batch, config: TrainConfig) -> Arrays:
    """The rows of `trainers.grpo`: legacy and phase 1."""
    budget = config.optim.micro_batch_tokens
    places = split_rows(policy, [len(row) for row in batch.trajectories], budget)
    out: Arrays = {}
    for indices, micro in zip(places, micro_batches(policy, batch, config.loss, budget), strict=True):
        images = _by_row(batch, indices, micro.image_bytes, micro.image_grid_thw)
        for row, (index, own_images) in enumerate(zip(indices, images, strict=True)):
            length = int(micro.attention_mask[row].sum())
            trained = micro.loss_mask[row, :length]
            of_tokens = {
                "old_logprobs": micro.old_logprobs[row, :length][trained],
                "advantages": micro.advantages[row, :length][trained],
                "versions": torch.from_numpy(batch.trajectories[index].versions).to(trained.device)[trained],
            }
            out |= _row(index, micro.input_ids[row, :length], trained, of_tokens, own_images)
    return out


def areal_rows(batch: Batch, tensors: Sequence[Mapping[str, Any]], *, versions_shifted: bool) -> Arrays:
    """The rows of AReaL's tensors, a mapping a group or one for all: phases 2 and 3. Per-token entries are where the
    token is predicted, one place before it; versions only with `versions_shifted`, because AReaL leaves its own at
    their tokens."""
    places = iter(_grouped(batch) if len(tensors) > 1 else range(len(batch.trajectories)))
    out: Arrays = {}
    for group in tensors:
        for row, length in enumerate(group["attention_mask"].sum(-1).tolist()):
            trained = group["loss_mask"][row].roll(1)[:length].bool()
            of_tokens = {
                "old_logprobs": group["logprobs"][row].roll(1)[:length][trained],
                "advantages": group["advantages"][row].roll(1)[:length][trained].float(),
                "versions": group["versions"][row].roll(int(versions_shifted))[:length][trained],
            }
            images = group["multi_modal_input"][row] if "multi_modal_input" in group else {}
            out |= _row(next(places), group["input_ids"][row, :length], trained, of_tokens, images)
    return out


def loss_scale(batch: Batch, config: TrainConfig) -> float:
    """Sum over all trained tokens of coefficient * |advantage|: the size of the loss's terms. The loss itself is no
    measure of its own error, because the advantages of a group cancel."""
    rows = weigh_rows(batch, config.loss)
    return sum(row.coefficient * float(abs(row.token_advantages[row.trajectory.loss_mask == 1]).sum()) for row in rows)


def _grouped(batch: Batch) -> Iterator[int]:
    groups = list(dict.fromkeys(row.group_id for row in batch.trajectories))
    for group in groups:
        yield from (index for index, row in enumerate(batch.trajectories) if row.group_id == group)


def _row(
    index: int, ids: Tensor, trained: Tensor, of_tokens: Mapping[str, Tensor], images: Mapping[str, Tensor]
) -> Arrays:
    tensors = {"input_ids": ids, "loss_mask": trained, **of_tokens, **images}
    return {f"{index}/{name}": np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}


def _by_row(
    batch: Batch, indices: Sequence[int], pixels: Tensor | None, grids: Tensor | None
) -> list[dict[str, Tensor]]:
    """Pixels and grids of a micro-batch, taken apart row by row."""
    out: list[dict[str, Tensor]] = []
    image, patch = 0, 0
    for index in indices:
        count = len(batch.trajectories[index].images)
        if not count or pixels is None or grids is None:
            out.append({})
            continue
        own = grids[image : image + count]
        patches = int(own.prod(-1).sum())
        out.append({"pixel_values": pixels[patch : patch + patches], "image_grid_thw": own})
        image, patch = image + count, patch + patches
    return out
