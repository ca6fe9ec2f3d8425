"""`AReaLGRPOTrainer`: the asynchronous backend, in phases of migration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cua_agent.tasks import CUATask
from trainers.areal.process import prepare_process
from trainers.config import TrainConfig
from trainers.crew import ALONE, Crew
from trainers.metrics import ProgressReporter
from trainers.parts import Parts, build_parts
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, Trainer, TrainResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainers.areal.learner import EngineLearner
    from trainers.areal.tensors import TensorDict
    from trainers.grpo.learner import PolicyLearner
    from trainers.rollouts import Rollouts

    Tensors = Callable[[Batch], list[TensorDict]]


class AReaLGRPOTrainer:
    """Multi-turn GRPO on AReaL; implements `Trainer`.

    Phase 1: AReaL collects, we learn. Phase 2: AReaL's engine holds the model as well and computes our loss. Phase 3:
    AReaL's trainer runs everything. `parts` replaces what `build_parts(config)` would load (with `scheduler`, workers
    load it). In phases 2 and 3 every process of `crew` has a trainer, and all of its methods are collective.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_directory: Path,
        progress: ProgressReporter,
        parts: Parts | None = None,
        crew: Crew = ALONE,
    ) -> None:
        self._trainer: Trainer
        self._tensors: Tensors
        prepare_process(run_directory, controller=config.scheduler != "none")
        if config.scheduler != "none":
            from trainers.areal.cluster.trainer import ClusterTrainer

            self._trainer, self._tensors = ClusterTrainer(config, run_directory, progress), _no_tensors
            return
        parts = parts or build_parts(config)
        self._trainer, self._tensors = _of_phase(config, run_directory, progress, parts, crew)

    def train(self) -> TrainResult:
        return self._trainer.train()

    def update(self, batch: Batch) -> StepRecord:
        return self._trainer.update(batch)

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        return self._trainer.loss_and_gradients(batch)

    def tensors(self, batch: Batch) -> list[TensorDict]:
        """What AReaL's engine trains on when it is given `batch`; phases 2 and 3. Every per-token entry is where its
        token is predicted, one place before it; phase 3 has a mapping a group."""
        return self._tensors(batch)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._trainer.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._trainer.save(path)

    def load(self, path: Path) -> None:
        self._trainer.load(path)

    def close(self) -> None:
        self._trainer.close()


def _of_phase(
    config: TrainConfig, run_directory: Path, progress: ProgressReporter, parts: Parts, crew: Crew
) -> tuple[Trainer, Tensors]:
    """The trainer of a phase, and what it makes of a batch."""
    if config.phase == 3:
        from trainers.areal.full import FullTrainer

        full = FullTrainer(config, run_directory, progress, parts, crew)
        return full, full.tensors
    from trainers.areal.asynchronous import AsynchronousRollouts
    from trainers.areal.site import RolloutSite
    from trainers.areal.together import SharedRollouts
    from trainers.loop import TrainingLoop

    serving = parts.policy.frozen_copy()  # before the model is sharded
    learner, tensors = _learner(config, parts, crew)
    site = RolloutSite(config, parts, run_directory, serving, crew)
    rollouts: Rollouts = AsynchronousRollouts(site, learner.trained_weights)
    if crew.size > 1:
        rollouts = SharedRollouts(rollouts, crew)
    loop = TrainingLoop(
        config, run_directory, progress, rollouts=rollouts, learner=learner, eval_tasks=parts.eval_tasks, crew=crew
    )
    return loop, tensors


def _learner(config: TrainConfig, parts: Parts, crew: Crew) -> tuple[PolicyLearner | EngineLearner, Tensors]:
    if config.phase == 1:
        from trainers.grpo.learner import PolicyLearner

        return PolicyLearner(parts.policy, config), _no_tensors
    from trainers.areal.learner import EngineLearner

    learner = EngineLearner(parts.policy, config, crew)
    return learner, lambda batch: [learner.tensors(batch)]


def _no_tensors(_: Batch) -> list[TensorDict]:
    raise RuntimeError("AReaL's engine is not in this process")
