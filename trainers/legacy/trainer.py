"""`CUAGRPOTrainer`: the synchronous backend. Roll out, learn, roll out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cua_agent.tasks import CUATask
from cua_agent.trajectory import Trajectory
from trainers.components import Components, build_components, build_engine
from trainers.config import TrainConfig
from trainers.episodes.log import EpisodeLog
from trainers.grpo.learner import PolicyLearner
from trainers.legacy.rollouts import SynchronousRollouts
from trainers.loop import TrainingLoop
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, TrainerState, TrainResult
from trainers.run.checkpoint import try_saving
from trainers.run.metrics import ProgressReporter
from trainers.run.operations import UpdateOperations
from trainers.run.taking_up import spool_of


class CUAGRPOTrainer:
    """Multi-turn GRPO, synchronously: every episode is sampled by the policy that is about to be updated.

    Implements `Trainer`. `components` replaces what `build_components(config)` would load.
    """

    def __init__(
        self, config: TrainConfig, run_directory: Path, progress: ProgressReporter, components: Components | None = None
    ) -> None:
        episodes = EpisodeLog(run_directory, "0", config.logging, config.reward)
        components = components or build_components(config, episodes=episodes)
        try_saving(run_directory, components.policy)
        self._learner = PolicyLearner(components.policy, config)
        self._loop = TrainingLoop(
            config,
            run_directory,
            progress,
            rollouts=SynchronousRollouts(
                config, components, build_engine(config, components.policy), spool_of(config, run_directory)
            ),
            learner=self._learner,
            eval_tasks=components.eval_tasks,
            difficulty=components.difficulty,
            successes=components.successes,
            operations=UpdateOperations(components.policy),
        )

    @property
    def state(self) -> TrainerState:
        """Progress so far: what a checkpoint would hold."""
        return self._loop.state

    def train(self) -> TrainResult:
        return self._loop.train()

    def update(self, batch: Batch) -> StepRecord:
        return self._loop.update(batch)

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        return self._loop.loss_and_gradients(batch)

    def compute_loss_for_trajectory(self, trajectory: Trajectory, advantage: float) -> Tensor:
        """Loss of one trajectory on its own, 0-d with gradient: that of a batch that holds nothing else."""
        return self._learner.loss_of(trajectory, advantage)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._loop.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._loop.save(path)

    def load(self, path: Path) -> None:
        self._loop.load(path)

    def close(self) -> None:
        self._loop.close()
