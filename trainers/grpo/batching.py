"""From trajectories to padded micro-batches. Deterministic, every row exactly once, no image ever dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cua_agent.models.packed_attention import takes_packed_rows
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.config import LossConfig
from trainers.grpo.checks import check_row
from trainers.grpo.credit import token_steps
from trainers.grpo.loss import token_coefficients
from trainers.grpo.prefetch import prefetched
from trainers.grpo.tokens import action_tokens
from trainers.protocol import Batch


@dataclass(frozen=True)
class Row:
    """One trajectory, its advantage, the loss coefficient of each of its trained tokens, and what each of its trained
    turns adds to the advantage (empty: nothing)."""

    trajectory: Trajectory
    advantage: float
    coefficient: float
    steps: Sequence[float] = ()

    @property
    def token_advantages(self) -> npt.NDArray[np.float32]:
        """float32 [L]: the advantage of every token."""
        return np.float32(self.advantage) + token_steps(self.trajectory, self.steps)


@dataclass(frozen=True)
class MicroBatch:
    """B rows, padded on the right to the length L of the longest.

    `input_ids`, `attention_mask` int64 [B, L]; `position_ids` int64 [3, B, L] (M-RoPE: time, height, width);
    `loss_mask` bool [B, L], True on trained tokens; `old_logprobs` float32 [B, L], of the sampling policy;
    `advantages` float32 [B, L], of tokens; `coefficients` float64 [B]; `image_bytes`, `image_grid_thw` as
    `PolicyModel.image_bytes` gives them, the images of all rows in order (None without images); `actions` bool [B, L],
    True on trained tokens of a tool call (None where they cannot be told). Where things are is told in numbers, because
    a device has to be waited for before it tells what a mask selects: `lengths` of the rows, `trained_at` int64 [N],
    the places of the N trained tokens among B * L, row by row. `lengths` and `image_grid_thw` stay in main memory.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    loss_mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    coefficients: Tensor
    image_bytes: Tensor | None
    image_grid_thw: Tensor | None
    lengths: tuple[int, ...]
    trained_at: Tensor
    actions: Tensor | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image_grid_thw"}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def of_trained(self, values: Tensor) -> Tensor:
        """[N]: those of `values` [B, L] that belong to a trained token."""
        return values.flatten()[self.trained_at]

    @property
    def rows(self) -> Tensor:
        """int64 [N]: the row of each trained token."""
        return self.trained_at // self.input_ids.shape[1]


def places_of(mask: Tensor) -> Tensor:
    """int64 [N]: where `mask`, laid end to end, is set."""
    return mask.flatten().nonzero()[:, 0]


def weigh_rows(batch: Batch, config: LossConfig) -> list[Row]:
    """Attach to every trajectory the coefficient that `config.normalisation` gives its tokens in this batch."""
    trajectories = batch.trajectories
    counts = [int(row.loss_mask.sum()) for row in trajectories]
    coefficients = token_coefficients(counts, [row.weight for row in trajectories], config)
    return [Row(*row) for row in zip(trajectories, batch.advantages, coefficients, batch.steps, strict=True)]


def split_rows(policy: PolicyModel, lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in micro-batches of at most `budget` tokens that `policy` computes; a row longer than that
    goes alone."""
    return split_packed(lengths, budget) if takes_packed_rows(policy.base_model) else split_padded(lengths, budget)


def split_padded(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups whose padded size, rows * longest, is at most `budget`; longest first, so that like lengths share one."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def split_packed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups whose sum is at most `budget`: each row, longest first, joins the first group that has room for it."""
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((n for n, left in enumerate(room) if lengths[index] <= left), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(budget)
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups


def micro_batches(policy: PolicyModel, batch: Batch, config: LossConfig, budget: int) -> Iterator[MicroBatch]:
    """The batch in micro-batches of at most `budget` tokens (see `split_rows`), on the policy's device; while one is
    worked on, the next is collated and copied."""
    rows = weigh_rows(batch, config)
    groups = split_rows(policy, [len(row.trajectory) for row in rows], budget)

    def make(indices: Sequence[int]) -> MicroBatch:
        return collate(policy, [rows[i] for i in indices]).to(policy.device)

    yield from prefetched((partial(make, indices) for indices in groups), policy.device)


def collate(policy: PolicyModel, rows: Sequence[Row]) -> MicroBatch:
    """Pad and stack `rows`, on the CPU.

    Raises `ValueError` as `check_row`.
    """
    trajectories = [row.trajectory for row in rows]
    for trajectory in trajectories:
        check_row(policy, trajectory)
    length = max(len(t) for t in trajectories)

    def padded(arrays: Sequence[npt.NDArray[Any]], fill: float, dtype: torch.dtype) -> Tensor:
        out = torch.full((len(arrays), length), fill, dtype=dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = torch.as_tensor(array).to(dtype)
        return out

    positions = [policy.positions(t.input_ids.tolist(), t.images) for t in trajectories]
    images = [image for t in trajectories for image in t.images]
    image_bytes, image_grid_thw = policy.image_bytes(images) if images else (None, None)
    input_ids = padded([t.input_ids for t in trajectories], policy.special.pad_id, torch.int64)
    loss_mask = padded([t.loss_mask for t in trajectories], 0, torch.bool)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=padded([np.ones(len(t)) for t in trajectories], 0, torch.int64),
        position_ids=torch.stack([padded([p[axis] for p in positions], 0, torch.int64) for axis in range(3)]),
        loss_mask=loss_mask,
        old_logprobs=padded([t.logprobs for t in trajectories], 0, torch.float32),
        advantages=padded([row.token_advantages for row in rows], 0, torch.float32),
        coefficients=torch.tensor([row.coefficient for row in rows], dtype=torch.float64),
        image_bytes=image_bytes,
        image_grid_thw=image_grid_thw,
        lengths=tuple(len(t) for t in trajectories),
        trained_at=places_of(loss_mask),
        actions=action_tokens(input_ids, loss_mask, policy.special.call_id),
    )
