"""The weights that a replay starts from, as a checkpoint that every side loads, and what they would have sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.components import Components
from trainers.config import TrainConfig
from trainers.grpo.batching import Row, collate
from trainers.grpo.forward import score_tokens
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import TrainerState

_SIZE_OF_ZEROS = 0.3
"""What a parameter of zeros (LoRA's B) counts as when it is moved by a share of its size."""


def make_start(path: Path, config: TrainConfig, components: Components, recorded: Path | None, moved: float) -> None:
    """Write the checkpoint `path`: that of `recorded`, or the freshly loaded policy without one, every trained
    parameter moved by noise of `moved` times its size. The run it belongs to begins there."""
    learner = PolicyLearner(components.policy, config)
    if recorded is not None:
        learner.load(recorded)
    if moved:
        move(components.policy, moved)
    learner.snapshot(TrainerState()).write(path)


@torch.no_grad()
def move(policy: PolicyModel, share: float) -> None:
    """Add noise to every trained parameter, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in policy.trainable_parameters():
        size = float(parameter.float().pow(2).mean().sqrt()) or _SIZE_OF_ZEROS
        noise = torch.randn(parameter.shape, generator=generator) * (share * size)
        parameter.add_(noise.to(parameter.device, parameter.dtype))


@torch.no_grad()
def rescored(policy: PolicyModel, rows: Sequence[Trajectory], temperature: float) -> list[Trajectory]:
    """The rows with the log-probs that `policy` would have sampled their tokens with."""
    out = []
    for row in rows:
        micro = collate(policy, [Row(row, 0.0, 0.0)]).to(policy.device)
        logprobs = row.logprobs.copy()
        logprobs[row.loss_mask == 1] = score_tokens(policy, micro, temperature).logprobs.cpu().numpy()
        out.append(replace(row, logprobs=logprobs))
    return out
