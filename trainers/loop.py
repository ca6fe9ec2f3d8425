"""The training loop that is ours: collect, learn, publish, evaluate, save; whoever plays and whoever learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cua_agent.tasks import CUATask, EvalSplit
from trainers.config import TrainConfig
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainers.grpo.advantages import batch_of
from trainers.grpo.blindness import blind_gap
from trainers.protocol import (
    Batch,
    Collected,
    EvalRecord,
    Learner,
    LossRecord,
    Rollouts,
    StepRecord,
    TrainerState,
    TrainResult,
    Usage,
)
from trainers.rollouts.difficulty import TaskDifficulty
from trainers.rollouts.replay import SuccessPool
from trainers.run.gpu_meter import GpuMeter
from trainers.run.interrupts import interrupts_held
from trainers.run.lifecycle import RunLifecycle
from trainers.run.metrics import ProgressReporter
from trainers.run.recorder import RunRecorder
from trainers.run.step_metrics import Timing, staleness
from trainers.run.stopping import Stopped


class TrainingLoop:
    """Multi-turn GRPO over `rollouts` and a `learner`, which it owns and closes; implements `Trainer`.

    `difficulty` is what `rollouts` draw tasks by, `successes` what they replay; `operations` tells what an update on a
    batch computes. With `config.resume` the run goes on from that checkpoint. Every process of `process_group` runs a
    loop of its own, in step with the others; `rollouts` and `learner` bring them together.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_directory: Path,
        progress: ProgressReporter,
        *,
        rollouts: Rollouts,
        learner: Learner,
        eval_tasks: Mapping[EvalSplit, Sequence[CUATask]],
        difficulty: TaskDifficulty,
        successes: SuccessPool,
        operations: Callable[[Batch], float] | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._config = config
        self._rollouts = rollouts
        self._learner = learner
        self._meter = GpuMeter()
        self._recorder = RunRecorder(
            config,
            run_directory,
            progress,
            snapshot=learner.snapshot,
            position=lambda: rollouts.position,
            difficulty=difficulty,
            successes=successes,
            operations=operations,
            process_group=process_group,
        )
        self._lifecycle = RunLifecycle(
            config,
            progress,
            self._recorder,
            rollouts,
            eval_tasks,
            to_batch=partial(batch_of, config=config.advantage),
        )
        if config.resume is not None:
            self._resume(config.resume)

    @property
    def state(self) -> TrainerState:
        """Progress so far: what a checkpoint would hold."""
        return self._recorder.state

    def train(self) -> TrainResult:
        """Run until `max_steps`, `max_minutes`, the target success, or lost patience; see `RunLifecycle.run`."""
        return self._lifecycle.run(self._train_until_stopped)

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on `batch`; the engine serves the new weights from then on."""
        record = self._learner.update(batch)
        self._publish([record])
        return record

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        return self._learner.loss_and_gradients(batch)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._lifecycle.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._recorder.snapshot().write(path)

    def load(self, path: Path) -> None:
        state = self._learner.load(path)
        self._recorder.restore(state, path)
        self._rollouts.restore(state.policy_version, state.data_position)

    def close(self) -> None:
        self._rollouts.close()
        self._learner.close()
        self._recorder.close()

    def _resume(self, resume: str) -> None:
        try:
            self._lifecycle.resume(resume, self.load)
        except BaseException:
            self.close()
            raise

    def _train_until_stopped(self) -> tuple[str, EvalRecord | None]:
        recorder = self._recorder
        latest: EvalRecord | None = None
        reason: str | None = None
        while reason is None and (reason := recorder.out_of_budget()) is None:
            try:
                self._step()
            except Stopped as stopped:
                recorder.stopped(stopped)
                return stopped.reason, latest
            latest = None
            if recorder.evaluation_due:
                latest, reason = self._lifecycle.evaluate_split("seeds")
            recorder.checkpoint_when_due()
        return reason, latest

    def _step(self) -> None:
        started = time.perf_counter()
        collected, usage = self._rollouts.collect(self._lifecycle.collecting())
        with interrupts_held():  # weights, counters and files move on together
            self._learn(collected, usage, started)

    def _learn(self, collected: Collected, usage: Usage, started: float) -> None:
        batch = self._lifecycle.batch_of(collected)
        rows = batch.trajectories
        stale = staleness(rows, self.state.policy_version)
        seen = {"blind_gap": blind_gap(batch, self.loss_and_gradients)} if self._recorder.blindness_due else {}
        self._meter.start()
        clock = time.perf_counter()
        updates = [self._learner.update(batch) for _ in range(self._config.optim.updates_per_batch if rows else 0)]
        learnt = time.perf_counter()
        gpu = self._meter.stop()
        self._publish(updates)
        ended = time.perf_counter()
        timing = Timing(usage.wall_s, learnt - clock, ended - learnt, ended - started, gpu)
        told = [replace(update, metrics={**update.metrics, **seen}) for update in updates]
        self._recorder.step(collected, batch, told, stale, timing, usage)

    def _publish(self, updates: Sequence[StepRecord]) -> None:
        """Sample with the new weights under a new version, if there are any."""
        if not all(update.skipped for update in updates):
            self._rollouts.publish(self._recorder.new_version())
