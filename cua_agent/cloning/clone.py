"""Supervised training of a policy on an example stream, on one device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
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
    parameters: Sequence[nn.Parameter] | None = None,
    stepped: Callable[[], None] = lambda: None,
) -> None:
    """Train in place what is trainable, on batches that come in chunks; `report(step, loss)` is called after every
    step. The optimiser steps on `parameters`, where these are not the model's own, and `stepped` takes them over.

    Raises `FloatingPointError` when the loss is not finite.
    """
    model, device = policy.model, policy.device
    trained = list(parameters or [parameter for _, parameter in policy.trainable_parameters()])
    optimizer = torch.optim.AdamW(trained, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    started, step = time.monotonic(), 0
    while (progress := schedule.progress(step, time.monotonic() - started)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, progress)
        chunks = next(batches)
        tokens = sum(int(chunk.labels.sum()) for chunk in chunks)
        losses = []
        for chunk in chunks:
            loss = imitation_loss(policy, chunk, device) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        total = float(torch.stack(losses).sum())
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss of step {step + 1} is {total}: take a lower learning rate")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        stepped()
        optimizer.zero_grad(set_to_none=True)
        report(step, total)
        step += 1
    model.eval()


def imitation_loss(policy: PolicyModel, batch: CloneBatch, device: torch.device) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens (scalar)."""
    input_ids, labels = batch.input_ids.to(device), batch.labels.to(device)
    pixels: tuple[Tensor | None, Tensor | None] = (None, None)
    if batch.pixels is not None and batch.grids is not None:
        pixels = policy.pixel_values(batch.pixels, batch.grids), batch.grids.to(device)
    hidden = policy.hidden_states(
        input_ids, batch.attention_mask.to(device), batch.positions.to(device), pixels, use_cache=False
    )
    chosen = labels[:, 1:].bool()
    logits = policy.base_model.lm_head(hidden[:, :-1][chosen])  # the head on labelled tokens only
    return cross_entropy(logits.float(), input_ids[:, 1:][chosen], reduction="sum")
