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
    box_minutes: float
    staleness_max: int


@dataclass(frozen=True)
class TrainerState:
    """Progress of a run: everything a trainer needs to go on, besides weights, optimiser and generators.

    `data_position` counts the training groups drawn so far; `staleness_*` are over trained episodes; the `_s` fields
    are seconds already spent.
    """

    step: int = 0
    policy_version: int = 0
    data_position: int = 0
    eval_success_start: float | None = None
    best_success: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    staleness_sum: int = 0
    staleness_count: int = 0
    staleness_max: int = 0
    wall_s: float = 0.0
    rollout_s: float = 0.0
    train_s: float = 0.0


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


class Learner(Protocol):
    """Turns batches into weight updates: owns the trained weights, their optimiser and its schedule."""

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on a given batch."""
        ...

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        """Loss and gradients on a given batch; nothing changes."""
        ...

    def save(self, path: Path, state: TrainerState) -> None:
        """Write the checkpoint directory `path`, atomically."""
        ...

    def load(self, path: Path) -> TrainerState:
        """Restore everything that `save` wrote. Raises `CheckpointError`."""
        ...

    def close(self) -> None:
        """Release what the learner holds; safe to call twice."""
        ...
