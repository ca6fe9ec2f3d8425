"""`AReaLGRPOTrainer`: the asynchronous backend, in phases of migration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cua_agent.tasks import CUATask
from trainers.areal.loopback import meeting_place, stay_on_this_machine
from trainers.areal.process import prepare_process
from trainers.components import Components, build_components
from trainers.config import TrainConfig
from trainers.config.cluster import is_one_machine
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainers.episodes.log import EpisodeLog
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, Trainer, TrainResult
from trainers.run.checkpoint import try_saving
from trainers.run.metrics import ProgressReporter
from trainers.run.operations import UpdateOperations

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainers.areal.tensors import TensorDict
    from trainers.areal.train.phase2_learner import Phase2Learner
    from trainers.grpo.learner import PolicyLearner
    from trainers.protocol import Rollouts

    Tensors = Callable[[Batch], list[TensorDict]]


class AReaLGRPOTrainer:
    """Multi-turn GRPO on AReaL; implements `Trainer`.

    Phase 1: AReaL collects, we learn. Phase 2: AReaL's engine holds the model as well and computes our loss. Phase 3:
    AReaL's trainer runs everything. `components` replaces what `build_components(config)` would load (with `scheduler`,
    workers load it). In phases 2 and 3 every process of `process_group` has a trainer, and all methods are collective.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_directory: Path,
        progress: ProgressReporter,
        components: Components | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._trainer: Trainer
        self._tensors: Tensors
        prepare_process(run_directory, config.loader.device, controller=config.scheduler.name != "none")
        if config.scheduler.name != "none":
            from trainers.areal.cluster.cluster_trainer import ClusterTrainer

            if is_one_machine(config):
                stay_on_this_machine(meeting_place(run_directory))
            self._trainer, self._tensors = ClusterTrainer(config, run_directory, progress), _no_tensors
            return
        components = components or build_components(
            config, sharded=_is_sharded_at_once(config), episodes=_episodes_of(config, run_directory, process_group)
        )
        try_saving(run_directory, components.policy)
        self._trainer, self._tensors = _of_phase(config, run_directory, progress, components, process_group)

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


def _episodes_of(config: TrainConfig, run_directory: Path, process_group: ProcessGroup) -> EpisodeLog:
    """All processes record in the first one's directory."""
    directory = process_group.broadcast(run_directory.absolute())
    return EpisodeLog(directory, str(process_group.rank), config.logging, config.reward)


def _is_sharded_at_once(config: TrainConfig) -> bool:
    """Whether nothing needs the whole model before it is sharded: what is sampled from in this process does."""
    return config.phase in (2, 3) and config.inference.name == "vllm"


def _of_phase(
    config: TrainConfig,
    run_directory: Path,
    progress: ProgressReporter,
    components: Components,
    process_group: ProcessGroup,
) -> tuple[Trainer, Tensors]:
    """The trainer of a phase, and what it makes of a batch."""
    if config.phase == 3:
        from trainers.areal.train.phase3_trainer import Phase3Trainer

        full = Phase3Trainer(config, run_directory, progress, components, process_group)
        return full, full.tensors
    from trainers.areal.rollout.asynchronous_rollouts import AsynchronousRollouts
    from trainers.areal.rollout.distributed_rollouts import DistributedRollouts
    from trainers.areal.rollout.rollout_worker import RolloutWorker, serving_policy
    from trainers.loop import TrainingLoop

    serving = serving_policy(config, components.policy)  # before the model is sharded
    learner, tensors = _learner(config, components, process_group)
    worker = RolloutWorker(config, components, run_directory, serving, process_group)
    rollouts: Rollouts = AsynchronousRollouts(worker, learner.trained_weights)
    if process_group.size > 1:
        rollouts = DistributedRollouts(rollouts, process_group)
    loop = TrainingLoop(
        config,
        run_directory,
        progress,
        rollouts=rollouts,
        learner=learner,
        eval_tasks=components.eval_tasks,
        difficulty=components.difficulty,
        successes=components.successes,
        operations=UpdateOperations(components.policy),
        process_group=process_group,
    )
    return loop, tensors


def _learner(
    config: TrainConfig, components: Components, process_group: ProcessGroup
) -> tuple[PolicyLearner | Phase2Learner, Tensors]:
    if config.phase == 1:
        from trainers.grpo.learner import PolicyLearner

        return PolicyLearner(components.policy, config), _no_tensors
    from trainers.areal.train.phase2_learner import Phase2Learner

    learner = Phase2Learner(components.policy, config, process_group)
    return learner, lambda batch: [learner.tensors(batch)]


def _no_tensors(_: Batch) -> list[TensorDict]:
    raise RuntimeError("AReaL's engine is not in this process")
