"""The `Trainer` protocol that every backend implements, and the records it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from cua_agent.tasks import CUATask
from cua_agent.trajectory import Trajectory


@dataclass(frozen=True)
class Batch:
    """Trajectories with one advantage each (`advantages[i]` belongs to `trajectories[i]`): a replayable update."""

    trajectories: Sequence[Trajectory]
    advantages: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.trajectories) != len(self.advantages):
            raise ValueError(f"{len(self.trajectories)} trajectories but {len(self.advantages)} advantages")


@dataclass(frozen=True)
class LossRecord:
    """Loss of a batch at the present weights: metrics of `trainers.grpo.loss` (all scalars), and, by parameter name,
    the gradients (float32, on the CPU)."""

    metrics: Mapping[str, float]
    gradients: Mapping[str, torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step (`skipped` when its loss or gradient was not finite and nothing was changed)."""

    metrics: Mapping[str, float]
    skipped: bool = False


@dataclass(frozen=True)
class EvalRecord:
    """Success of the present policy on a set of tasks; `by_category` holds (successes, episodes)."""

    step: int
    episodes: int
    success_rate: float
    reward_mean: float
    turns_mean: float
    by_category: Mapping[str, tuple[int, int]]
    infra_errors: int = 0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; the content of `summary.json`."""

    steps: int
    stop_reason: str
    eval_success_start: float | None
    eval_success_end: float | None
    eval_success_best: float | None
    wall_s: float
    rollout_s: float
    train_s: float
    env_utilisation: float
    staleness_max: int


class Trainer(Protocol):
    """A backend: owns the policy, its optimiser and its rollouts."""

    def train(self) -> TrainResult:
        """Run until `max_steps`, the target accuracy, or lost patience."""
        ...

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on a given batch; no rollouts."""
        ...

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        """Loss and gradients on a given batch; weights and optimiser stay as they are."""
        ...

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """Sampled episodes on held-out seeds."""
        ...

    def save(self, path: Path) -> None:
        """Write a checkpoint directory, atomically."""
        ...

    def load(self, path: Path) -> None:
        """Restore everything that `save` wrote."""
        ...

    def close(self) -> None:
        """Release environments, engine and writers; safe to call twice."""
        ...
