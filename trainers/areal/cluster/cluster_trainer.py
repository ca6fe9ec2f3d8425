"""The trainer of phase 3 with `scheduler`: it directs workers, and keeps the books of every other backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from areal.infra.scheduler.exceptions import SchedulerError

from cua_agent.tasks import CUATask
from trainers.areal.cluster.controller_stream import WORKFLOW, ControllerStream, WorkerLostError
from trainers.areal.cluster.controllers import ControllerPPOTrainer
from trainers.areal.cluster.schedulers import check_machine, opened_scheduler
from trainers.areal.cluster.worker_specs import controller_config
from trainers.areal.tensors import TensorDict
from trainers.areal.train.hooked_ppo_trainer import Hooks
from trainers.areal.train.phase3_trainer import check_supported
from trainers.areal.train.ppo_lifecycle import PPOLifecycle
from trainers.components import check_model, difficulty_of, held_out_tasks
from trainers.config import TrainConfig
from trainers.config.cluster import workers_of
from trainers.distributed.rank_config import without_trajectories
from trainers.grpo.advantages import batch_of
from trainers.protocol import Batch, EvalRecord, LossRecord, Snapshot, StepRecord, TrainerState, TrainResult
from trainers.rollouts.replay import SuccessPool
from trainers.run.lifecycle import RunLifecycle
from trainers.run.metrics import ProgressReporter
from trainers.run.recorder import RunRecorder

_CAUSE = 300
"""Characters of an error of AReaL's that are shown; it may quote a whole log."""


class ClusterTrainer:
    """Implements `Trainer`, but for recorded batches: the controller has no model, so `update` and
    `loss_and_gradients` are refused. Pixels stay on the workers, so batches are not recorded either.

    Whatever ends it, `close` ends every worker.
    """

    def __init__(self, config: TrainConfig, run_directory: Path, progress: ProgressReporter) -> None:
        check_supported(config)
        check_machine(config)
        check_model(config)
        self._config = config
        self._logs = run_directory / "areal" / "logs"
        self._workers = ExitStack()
        native = controller_config(config, run_directory)
        Path(native.cluster.fileroot).mkdir(parents=True, exist_ok=True)
        try:
            with self._explained():
                scheduler = self._workers.enter_context(opened_scheduler(config, native))
                hooks = Hooks(step_ended=lambda: self._run.step_ended(), settled=lambda: self._run.settle())
                self._ppo = ControllerPPOTrainer(native, scheduler, hooks)
                difficulty = difficulty_of(config.sampling)
                self._stream = ControllerStream(config, self._ppo.rollout, workers_of(config).training, difficulty)
                self._ppo.actor.next_batch, self._ppo.actor.publish = self._next_batch, self._publish
                self._recorder = RunRecorder(
                    without_trajectories(config),
                    run_directory,
                    progress,
                    snapshot=self._snapshot,
                    position=lambda: self._stream.position,
                    difficulty=difficulty,
                    successes=SuccessPool(config),
                )
                self._lifecycle = RunLifecycle(
                    config,
                    progress,
                    self._recorder,
                    self._ppo.rollout,
                    held_out_tasks(config),
                    partial(batch_of, config=config.advantage),
                )
                self._run = PPOLifecycle(self._lifecycle, self._recorder)
                if config.resume is not None:
                    self._lifecycle.resume(config.resume, self.load)
        except BaseException:
            self._workers.close()
            raise

    def train(self) -> TrainResult:
        with self._explained():
            return self._run.train(lambda: self._ppo.train(workflow=WORKFLOW))

    def update(self, batch: Batch) -> StepRecord:
        raise NotImplementedError(f"scheduler={self._config.scheduler.name}: {len(batch.trajectories)} rows; use none")

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        raise NotImplementedError(f"scheduler={self._config.scheduler.name}: {len(batch.trajectories)} rows; use none")

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._lifecycle.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._ppo.actor.save_run(path, self._recorder.state)

    def load(self, path: Path) -> None:
        state: TrainerState = self._ppo.actor.load_run(path)
        self._recorder.restore(state, path)
        self._ppo.serve(state.policy_version)
        self._stream.restore(state.data_position)
        self._ppo.start_at(state.step)

    def close(self) -> None:
        self._workers.close()
        self._recorder.close()

    def _snapshot(self, state: TrainerState) -> Snapshot:
        """Workers hold the weights, and write them themselves; they keep the successes that they replay."""
        return Snapshot(lambda path, _: self._ppo.actor.save_run(path, state), detached=False)

    def _next_batch(self) -> list[TensorDict]:
        """What the training workers learn from next."""
        self._run.watch.mark("collecting")
        collected, tensors, usage = self._stream.collect(self._lifecycle.collecting())
        return tensors if self._run.collected(collected, usage) else []

    def _publish(self) -> None:
        version = self._run.learnt(self._ppo.actor.last_update())
        if version is not None:
            self._ppo.serve(version)
            self._stream.after_version()
        self._run.watch.mark("published")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """AReaL's errors of many lines as one that says where workers wrote what happened."""
        try:
            yield
        except (SchedulerError, WorkerLostError) as error:
            cause = next(iter(str(error).splitlines()), "")[:_CAUSE]
            raise WorkerLostError(
                f"scheduler={self._config.scheduler.name}: {cause} (what workers wrote: {self._logs})"
            ) from error
