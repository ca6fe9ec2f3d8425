"""The trainer of phase 3 with `scheduler`: it directs workers, and keeps the books of every other backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from areal.infra.scheduler.exceptions import SchedulerError

from cua_agent.tasks import CUATask, EvalSplit
from trainers.areal.cluster.jobs import controller_config
from trainers.areal.cluster.ppo import ControllerPPOTrainer
from trainers.areal.cluster.schedulers import check_machine, opened_scheduler
from trainers.areal.cluster.stream import ControllerStream, WorkerLostError
from trainers.areal.full import check_supported
from trainers.areal.ppo import Hooks, Stopwatch
from trainers.areal.tensors import TensorDict
from trainers.checkpoint import find_checkpoint
from trainers.config import TrainConfig
from trainers.config.cluster import workers_of
from trainers.crew import without_trajectories
from trainers.evaluation import evaluate
from trainers.grpo.advantages import group_advantages
from trainers.interrupts import interrupts_held
from trainers.metrics import ProgressReporter
from trainers.parts import held_out_tasks
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, TrainerState, TrainResult
from trainers.rollouts import Collected, Usage
from trainers.run_book import RunBook
from trainers.step_metrics import Timing, staleness

_CAUSE = 300
"""Characters of an error of AReaL's that are shown; it may quote a whole log."""


class _Stopped(Exception):  # noqa: N818 (the run is over, nothing is wrong)
    """Leaves AReaL's loop, which knows no early end."""


class ClusterTrainer:
    """Implements `Trainer`, but for recorded batches: the controller has no model, so `update` and
    `loss_and_gradients` are refused. Pixels stay on the workers, so batches are not recorded either.

    Whatever ends it, `close` ends every worker.
    """

    def __init__(self, config: TrainConfig, run_directory: Path, progress: ProgressReporter) -> None:
        check_supported(config)
        check_machine(config)
        self._config = config
        self._progress = progress
        self._eval_tasks = held_out_tasks(config)
        self._logs = run_directory / "areal" / "logs"
        self._held = ExitStack()  # Ctrl-C, while a step changes weights that it would leave torn
        self._watch = Stopwatch()
        self._present: tuple[Collected, Batch, Usage] | None = None
        self._latest: EvalRecord | None = None
        self._workers = ExitStack()
        native = controller_config(config, run_directory)
        Path(native.cluster.fileroot).mkdir(parents=True, exist_ok=True)
        try:
            with self._explained():
                scheduler = self._workers.enter_context(opened_scheduler(config, native))
                hooks = Hooks(step_ended=self._step_ended, evaluate=self._evaluate_when_due)
                self._ppo = ControllerPPOTrainer(native, scheduler, hooks)
                self._stream = ControllerStream(config, self._ppo.rollout, workers_of(config).training)
                self._ppo.actor.next_batch = self._next_batch
                self._book = RunBook(
                    without_trajectories(config),
                    run_directory,
                    progress,
                    save=self._ppo.actor.save_run,
                    position=lambda: self._stream.position,
                )
                if config.resume is not None:
                    self._resume(config.resume)
        except BaseException:
            self._workers.close()
            raise

    def train(self) -> TrainResult:
        """As `TrainingLoop.train`; AReaL's loop in the middle."""
        self._book.start()
        try:
            with self._explained():
                with self._held:
                    reason = self._train_until_stopped()
                end = self._latest or self._evaluate_split("seeds")[0]
                templates, _ = self._evaluate_split("templates")
        except BaseException as error:
            with suppress(SchedulerError):  # the training workers may be the dead ones
                self._book.broken_off(error)
            raise
        return self._book.finish(reason, end, templates)

    def update(self, batch: Batch) -> StepRecord:
        raise NotImplementedError(f"scheduler={self._config.scheduler}: {len(batch.trajectories)} rows; use none")

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        raise NotImplementedError(f"scheduler={self._config.scheduler}: {len(batch.trajectories)} rows; use none")

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """`eval.episodes` episodes on held-out seeds. Raises `EnvironmentFailure` when every episode was lost."""
        on_done = partial(self._progress.phase, "evaluation")
        return evaluate(self._ppo.rollout, tasks, self._config.eval.episodes, self._book.state.step, on_done)

    def save(self, path: Path) -> None:
        self._ppo.actor.save_run(path, self._book.state)

    def load(self, path: Path) -> None:
        state: TrainerState = self._ppo.actor.load_run(path)
        self._book.restore(state)
        self._ppo.serve(state.policy_version)
        self._stream.restore(state.data_position)
        self._ppo.start_at(state.step)

    def close(self) -> None:
        self._workers.close()
        self._book.close()

    def _train_until_stopped(self) -> str:
        book = self._book
        reason: str | None = None
        if book.baseline_due:
            self._latest, reason = self._evaluate_split("seeds")
            self._evaluate_split("templates")
        reason = reason or book.out_of_budget()
        if reason is not None:
            return reason
        try:
            self._ppo.train(workflow="trainers.areal.cluster.worker.PlayGroup")
        except _Stopped as stopped:
            return str(stopped)
        return book.out_of_budget() or "max_steps"

    def _next_batch(self) -> list[TensorDict]:
        """What the training workers learn from next."""
        self._watch.mark("collecting")
        collected, tensors, usage = self._stream.collect(partial(self._progress.phase, "rollouts"))
        if lost := collected.lost:
            self._progress.message(f"{len(lost)} episodes were lost and replaced; the last: {lost[-1]}")
        rows = [row for group in collected.kept for row in group.rows]
        batch = group_advantages(rows, self._config.advantage).batch
        self._present, self._latest = (collected, batch, usage), None
        self._watch.mark("collected")
        self._held.enter_context(interrupts_held())
        return tensors

    def _step_ended(self) -> None:
        assert self._present is not None
        collected, batch, usage = self._present
        self._watch.mark("published")
        timing = Timing(
            rollout_s=usage.wall_s,
            train_s=self._watch.published - self._watch.collected,
            sync_s=0.0,  # AReaL's loop does not tell it from training
            step_s=self._watch.published - self._watch.collecting,
        )
        stale = staleness(batch.trajectories, self._book.state.policy_version)
        record = self._ppo.actor.last_update()
        self._stream.published()
        self._book.new_version()
        self._book.step(collected, batch, [record], stale, timing, usage)
        self._book.checkpoint_when_due()
        self._held.close()
        if not self._book.evaluation_due and (reason := self._book.out_of_budget()):
            raise _Stopped(reason)

    def _evaluate_when_due(self) -> None:
        if not self._book.evaluation_due:
            return
        self._latest, reason = self._evaluate_split("seeds")
        if reason := reason or self._book.out_of_budget():
            raise _Stopped(reason)

    def _evaluate_split(self, split: EvalSplit) -> tuple[EvalRecord, str | None]:
        record = self.evaluate(self._eval_tasks[split])
        return record, self._book.evaluation(record, split)

    def _resume(self, resume: str) -> None:
        path = find_checkpoint(resume)
        self.load(path)
        self._progress.message(f"resumed from {path} at step {self._book.state.step}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """AReaL's errors of many lines as one that says where workers wrote what happened."""
        try:
            yield
        except (SchedulerError, WorkerLostError) as error:
            cause = next(iter(str(error).splitlines()), "")[:_CAUSE]
            raise WorkerLostError(
                f"scheduler={self._config.scheduler}: {cause} (what workers wrote: {self._logs})"
            ) from error
