"""`AReaLGRPOTrainer`: the asynchronous backend, in phases of migration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cua_agent.tasks import CUATask
from trainers.areal.process import prepare_process
from trainers.config import TrainConfig
from trainers.metrics import ProgressReporter
from trainers.parts import Parts, build_parts
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, Trainer, TrainResult

if TYPE_CHECKING:
    from trainers.areal.learner import EngineLearner
    from trainers.grpo.learner import PolicyLearner


class AReaLGRPOTrainer:
    """Multi-turn GRPO on AReaL; implements `Trainer`.

    Phase 1: AReaL collects, we learn. Phase 2: AReaL's engine holds the model as well and computes our loss. Phase 3:
    AReaL's trainer runs everything. `parts` replaces what `build_parts(config)` would load.
    """

    def __init__(
        self, config: TrainConfig, run_directory: Path, progress: ProgressReporter, parts: Parts | None = None
    ) -> None:
        prepare_process(run_directory)
        self._trainer = _of_phase(config, run_directory, progress, parts or build_parts(config))

    def train(self) -> TrainResult:
        return self._trainer.train()

    def update(self, batch: Batch) -> StepRecord:
        return self._trainer.update(batch)

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        return self._trainer.loss_and_gradients(batch)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._trainer.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._trainer.save(path)

    def load(self, path: Path) -> None:
        self._trainer.load(path)

    def close(self) -> None:
        self._trainer.close()


def _of_phase(config: TrainConfig, run_directory: Path, progress: ProgressReporter, parts: Parts) -> Trainer:
    if config.phase == 3:
        from trainers.areal.full import FullTrainer

        return FullTrainer(config, run_directory, progress, parts)
    from trainers.areal.asynchronous import AsynchronousRollouts
    from trainers.areal.site import RolloutSite
    from trainers.loop import TrainingLoop

    serving = parts.policy.frozen_copy()  # before the model is sharded
    learner = _learner(config, parts)
    site = RolloutSite(config, parts, run_directory, serving)
    rollouts = AsynchronousRollouts(site, learner.trained_weights)
    return TrainingLoop(
        config, run_directory, progress, rollouts=rollouts, learner=learner, eval_tasks=parts.eval_tasks
    )


def _learner(config: TrainConfig, parts: Parts) -> PolicyLearner | EngineLearner:
    if config.phase == 1:
        from trainers.grpo.learner import PolicyLearner

        return PolicyLearner(parts.policy, config)
    from trainers.areal.learner import EngineLearner

    return EngineLearner(parts.policy, config)
