"""Supervised training of a small policy on an example stream, on one device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cua_agent.cloning.examples import CloneBatch
from cua_agent.models.policy import PolicyModel


@dataclass(frozen=True)
class CloneSchedule:
    """Length and learning rate: linear warm-up, then a cosine down to a twentieth.

    Training ends after `steps` or `minutes`, whichever comes first; the cosine follows the one that is nearer its end.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    minutes: float = math.inf

    def progress(self, step: int, elapsed_s: float) -> float:
        """0 at the start, 1 and more when training is over."""
        return max(step / self.steps, elapsed_s / (60 * self.minutes))

    def rate(self, step: int, progress: float) -> float:
        """The learning rate of `step` (from 0), `progress` (0..1) of the way to the end: warm-up, then cosine decay."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def clone(
    policy: PolicyModel,
    batches: Iterator[list[CloneBatch]],
    schedule: CloneSchedule,
    report: Callable[[int, float], None],
) -> None:
    """Train all weights in place on batches that come in chunks; `report(step, loss)` is called after every step."""
    model, device = policy.model, policy.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    started, step = time.monotonic(), 0
    while (progress := schedule.progress(step, time.monotonic() - started)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, progress)
        chunks = next(batches)
        tokens = sum(int(chunk.labels.sum()) for chunk in chunks)
        total = 0.0
        for chunk in chunks:
            loss = imitation_loss(policy, chunk, device) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step, total)
        step += 1
    model.eval()


def imitation_loss(policy: PolicyModel, batch: CloneBatch, device: torch.device) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens (scalar)."""
    input_ids, labels = batch.input_ids.to(device), batch.labels.to(device)
    pixels, grids = zip(*(patchify_stack(stack.to(device)) for stack in batch.images), strict=True)
    hidden = policy.base_model.model(
        input_ids=input_ids,
        attention_mask=batch.attention_mask.to(device),
        position_ids=batch.positions.to(device),
        pixel_values=torch.cat(pixels),
        image_grid_thw=torch.cat(grids),
    ).last_hidden_state
    chosen = labels[:, 1:].bool()
    logits = policy.base_model.lm_head(hidden[:, :-1][chosen])  # the head on labelled tokens only
    return cross_entropy(logits.float(), input_ids[:, 1:][chosen], reduction="sum")


def patchify_stack(images: Tensor, patch: int = 16, merge: int = 2) -> tuple[Tensor, Tensor]:
    """What the tiny model's image processor makes of uint8 images [n, H, W, 3], on their device.

    H and W are multiples of `patch * merge`. Returns `pixel_values` float32 [n * patches, 3 * 2 * patch * patch] in
    -1..1 and `image_grid_thw` int64 [n, 3].
    """
    n, height, width, _ = images.shape
    rows, columns = height // patch, width // patch
    values = images.float().div(127.5).sub(1).permute(0, 3, 1, 2)
    values = values.reshape(n, 3, rows // merge, merge, patch, columns // merge, merge, patch)
    values = values.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # the same image in both temporal slots
    values = values.expand(*values.shape[:6], 2, patch, patch).reshape(n * rows * columns, -1)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(n, 3)
    return values, grid
