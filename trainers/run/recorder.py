"""What a run keeps: its progress, metrics, recorded batches, evaluations and checkpoints; the same on every backend."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from cua_agent.error_text import type_and_line
from cua_agent.tasks import EvalSplit
from trainers.config import TrainConfig
from trainers.config.overrides import typed_text
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainers.episodes.steps import StepLog
from trainers.protocol import Batch, Collected, EvalRecord, Snapshot, StepRecord, TrainerState, TrainResult, Usage
from trainers.rollouts.difficulty import TaskDifficulty
from trainers.rollouts.replay import SuccessPool
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.checkpoint_writer import CheckpointWriter
from trainers.run.directory import display_path, path_to_type
from trainers.run.disk import NoSpace, full_in_words, is_full
from trainers.run.interrupts import BrokenOff, interrupts_held
from trainers.run.metrics import MetricsWriter, ProgressReporter, open_trackers
from trainers.run.pruning import prune_lineage
from trainers.run.resuming import StartingPoint, carry_best
from trainers.run.run_timeline import RunTimeline
from trainers.run.server_meter import ServerMeter
from trainers.run.shown_episodes import EvaluationReader
from trainers.run.step_metrics import Staleness, Timing, advance, step_metrics
from trainers.run.stopping import Stopped, observe, out_of_budget, stop_after_evaluation
from trainers.run.taking_up import spool_of, take_up
from trainers.run.throughput import Throughput, throughput

TakeSnapshot = Callable[[TrainerState], Snapshot]


class _Failed(Protocol):
    """What is called when a checkpoint of so many bytes could not be written."""

    def __call__(self, error: Exception, *, size: int) -> None: ...


class RunRecorder:
    """Keeps the books of one run in `directory`; knows nothing of how it rolls out or learns.

    `snapshot` takes what a checkpoint holds, `position` tells how many groups a resumed run must not play again,
    `difficulty` is what tasks are drawn by, `successes` what may be replayed, `operations` what an update on a batch
    computes. Every process of `process_group` keeps the same books, all but the first in a directory of its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        progress: ProgressReporter,
        *,
        snapshot: TakeSnapshot,
        position: Callable[[], int],
        difficulty: TaskDifficulty,
        successes: SuccessPool,
        operations: Callable[[Batch], float] | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._config = config
        self._directory = directory
        self._progress = progress
        self._process_group = process_group
        self._take = snapshot
        self._position = position
        self._difficulty = difficulty
        self._successes = successes
        self._operations = operations
        self._state = TrainerState()
        self._usage = Usage()
        self._clock = self._saved_at = time.perf_counter()
        self._checkpoints = CheckpointWriter()
        self._spool = spool_of(config, directory, process_group)
        self._whole: tuple[Path, int] | None = None  # the newest whole checkpoint, and its step
        self._steps = StepLog(directory)
        self._evaluations = EvaluationReader(directory)
        asked = config.inference.name == "vllm" and process_group.rank == 0
        self._servers = ServerMeter(config.inference.servers if asked else ())
        self._timeline = RunTimeline(directory, config.logging.timeline_mb if process_group.rank == 0 else 0.0)
        self._store = TrajectoryStore(directory / "trajectories", config.logging.save_trajectories)
        identity = {"backend": config.backend, "phase": config.active_phase, "seed": config.seed}
        self._writer = MetricsWriter(directory, open_trackers(config.logging, directory, identity), progress.message)

    @property
    def state(self) -> TrainerState:
        """Progress so far: what a checkpoint would hold."""
        counts = dict(self._difficulty.counts)
        return replace(self._state, data_position=self._position(), task_success=counts)

    def snapshot(self) -> Snapshot:
        """What a checkpoint of the present moment holds."""
        return replace(self._take(self.state), files=self._successes.files())

    def restore(self, state: TrainerState, checkpoint: Path) -> None:
        """Go on from a checkpoint's state."""
        self._state = state
        self._difficulty.counts = dict(state.task_success)
        self._successes.restore(checkpoint)
        if self._config.resume is not None:
            self._whole = Path(self._config.resume), state.step

    def forget_evaluations(self) -> None:
        """No evaluation so far can be compared with the coming ones."""
        self._state = replace(
            self._state, eval_success_start=None, best_success=None, best_step=None, evaluations_without_best=0
        )

    def carry_over(self, start: StartingPoint) -> str | None:
        """The best weights so far are this run's, too; says what could not be had of them."""
        if start.finished:  # it stopped for want of a new best, perhaps, and shall go on all the same
            self._state = replace(self._state, evaluations_without_best=0)
        if start.state.best_step is None or self._process_group.rank > 0:
            return None
        if carry_best(start, self._directory / "checkpoints" / "best") is not None:
            return None
        return f"the best weights (step {start.state.best_step}) are not there any more: checkpoints/best begins anew"

    def start(self) -> None:
        """The clock of the run starts, or goes on where a checkpoint stopped it."""
        self._saved_at = time.perf_counter()
        self._clock = self._saved_at - self._state.wall_s
        self._servers.look()
        if self._process_group.rank == 0 and (said := take_up(self._config, self._directory, self._spool, self._state)):
            self._progress.message(said)

    def new_version(self) -> int:
        """The weights changed: count it, and say under which version they are served."""
        self._state = replace(self._state, policy_version=self._state.policy_version + 1)
        return self._state.policy_version

    def batch(self, collected: Collected, batch: Batch) -> None:
        """Record what the coming step trains on, which has just been collected. From here on tasks are drawn by it."""
        self._timeline.collected()
        self._difficulty.observe(collected.groups)
        try:
            self._store.record(self._state.step + 1, batch)
        except OSError as error:  # training does not need it
            self._store = replace(self._store, keep=0)
            self._progress.message(f"batches are not recorded any further: {error}")

    def step(
        self,
        collected: Collected,
        batch: Batch,
        updates: Sequence[StepRecord],
        stale: Staleness,
        timing: Timing,
        usage: Usage,
    ) -> None:
        """A training step ended."""
        timing = self._process_group.broadcast(timing)
        self._state = advance(self._state, timing, stale, collected.episodes)
        self._usage += usage
        self._spool.trained(self._state.step, collected.group_ids)
        speed = self._throughput(batch, len(updates), timing)
        servers = self._servers.look()
        metrics = step_metrics(self._state, collected, batch, updates, stale, timing, usage, speed, servers)
        self._writer.step(metrics)
        trained = self._state.policy_version - any(not update.skipped for update in updates)
        self._steps.step(self._state.step, trained, collected, batch)
        self._progress.step(metrics, self._config.max_steps)
        self._timeline.step(self._state.step, timing, usage)
        for reason in dict.fromkeys(update.reason for update in updates if update.skipped):
            self._progress.message(f"update skipped in step {self._state.step}, the policy is unchanged: {reason}")

    def _throughput(self, batch: Batch, updates: int, timing: Timing) -> Throughput:
        if self._operations is None or not updates:
            return Throughput()
        tokens = sum(len(row) for row in batch.trajectories)
        operations = self._operations(batch)
        return throughput(updates * tokens, updates * operations, timing.train_s, self._process_group.size)

    def evaluating(self, split: EvalSplit) -> AbstractContextManager[None]:
        """The present weights are evaluated inside."""
        return self._timeline.evaluating(split, self._state.step)

    def evaluation(self, record: EvalRecord, split: EvalSplit) -> str | None:
        """An evaluation of the present weights ended; keeps the best ones, and returns why the run should stop."""
        self._writer.evaluation(record, split)
        if self._writer.tracked and self._config.logging.record_evaluations:
            shown = self._evaluations.newest(self._state.policy_version, record.episodes)
            self._writer.episodes(shown, split, record.step)
        self._progress.evaluation(record, split)
        self._steps.evaluation(record.step, self._state.policy_version, split)
        if split != "seeds":
            return None
        self._checkpoints.wait()  # whether the best so far could be saved
        before = self._state
        self._state = observe(before, record.success_rate)
        if self._state.best_step == self._state.step:
            self._steps.best(self._state.step, self._state.policy_version)
            self._checkpoint("best", failed=partial(self._best_not_saved, before))
        return stop_after_evaluation(self._state, record.success_rate, self._config.eval)

    def out_of_budget(self, collecting_s: float = 0.0) -> str | None:
        """Why no further step may begin, or go on after `collecting_s` seconds of collecting; or None."""
        return out_of_budget(self._state, self._config, collecting_s)

    def stopped(self, stopped: Stopped) -> None:
        """A step was broken off: its time counts, so that a resumed run has what is left of its budget."""
        self._state = replace(self._state, rollout_s=self._state.rollout_s + stopped.collecting_s)

    @property
    def blindness_due(self) -> bool:
        """Whether the coming step is to tell what becomes of turns without their screenshot."""
        every = self._config.logging.blindness_every_steps
        return bool(every) and (self._state.step + 1) % every == 0

    @property
    def evaluation_due(self) -> bool:
        """Whether held-out tasks are to be played after the present step."""
        every = self._config.eval.every_steps
        return bool(every) and self._state.step % every == 0

    @property
    def evaluation_missed(self) -> bool:
        """Whether the run that goes on was broken off before or in the evaluation of the present step."""
        return self.evaluation_due and self._state.evaluated_step < self._state.step

    @property
    def baseline_due(self) -> bool:
        """Whether held-out tasks are to be played before the first step."""
        return self._config.eval.baseline and self._state.eval_success_start is None

    def checkpoint_when_due(self) -> None:
        """Begin the periodic checkpoint of the present step, if there is one."""
        self._checkpoints.look()
        config, step = self._config.checkpoint, self._state.step
        due = bool(config.every_steps) and step % config.every_steps == 0
        if config.every_minutes:
            waited_s = time.perf_counter() - self._saved_at
            due |= self._process_group.broadcast(waited_s >= 60 * config.every_minutes)
        if due:
            self._checkpoint(f"step_{step:06d}")

    def last_checkpoint(self) -> Path:
        """Write `checkpoints/last`: the run ends, or is broken off. Raises what went wrong."""

        path = self._checkpoint("last", failed=self._raise)
        self._checkpoints.wait()
        return path

    def _checkpoint(self, name: str, *, failed: _Failed | None = None) -> Path:
        """Begin to write `checkpoints/<name>`, of the present moment."""
        path, step = self._directory / "checkpoints" / name, self._state.step
        self._saved_at = time.perf_counter()
        self._state = replace(self._state, wall_s=self._saved_at - self._clock)

        def whole() -> None:
            self._whole = path, step
            self._spool.covered(step)
            prune_lineage(self._directory, keep=self._config.checkpoint.keep)

        with interrupts_held():
            snapshot = self.snapshot()
            failed = partial(failed or partial(self._not_saved, name), size=snapshot.size)
            self._checkpoints.write(snapshot, path, written=whole, failed=failed)
        return path

    def _not_saved(self, name: str, error: Exception, *, size: int) -> None:
        """Training goes on while an older checkpoint is whole; else `error` is raised."""
        if self._whole is None:
            self._raise(error, size=size)
        why = self._in_words(error, size)
        self._progress.message(f"checkpoints/{name} could not be saved: {why}; the run goes on, and {self._kept()}")

    def _raise(self, error: Exception, *, size: int) -> NoReturn:
        if is_full(error):
            raise NoSpace(self._in_words(error, size)) from error
        raise error

    def _best_not_saved(self, before: TrainerState, error: Exception, *, size: int) -> None:
        self._not_saved("best", error, size=size)
        self._state = replace(self._state, best_success=before.best_success, best_step=before.best_step)

    def _in_words(self, error: Exception, size: int = 0) -> str:
        if isinstance(error, NoSpace):
            return str(error)
        if is_full(error):
            return full_in_words(self._directory, size)
        return type_and_line(error)

    def broken_off(self, error: BaseException) -> None:
        """Save what there is when `error` or Ctrl-C ends the run, and say so; a process that fails alone cannot."""
        if not self._process_group.failed_on_all(error) or is_full(error):
            return
        with suppress(KeyboardInterrupt), interrupts_held():  # the run is about to end in any case
            if isinstance(error, BrokenOff):
                self._progress.message(f"an update was broken off after step {self._state.step}: {self._kept()}")
            else:
                self._save_broken_off()

    def _save_broken_off(self) -> None:
        step = self._state.step
        try:
            path = self.last_checkpoint()
        except BrokenOff:
            self._progress.message(f"saving step {step} was broken off: {self._kept()}")
        except Exception as failure:  # what ended the run is what is told in the end
            why = self._in_words(failure)
            self._progress.message(f"stopped after step {step}; its weights could not be saved: {why}")
        else:
            self._progress.message(
                f"stopped after step {step}; {shlex.quote(typed_text('resume', path_to_type(path)))}"
            )

    def _kept(self) -> str:
        if self._whole is None:
            return "no checkpoint is there"
        path, step = self._whole
        return f"{display_path(path)} (step {step}) is whole"

    def finish(self, reason: str, end: EvalRecord, templates: EvalRecord) -> TrainResult:
        """The run is over: the last checkpoint, `summary.json`, and the result."""
        self.last_checkpoint()
        self._spool.clear()
        state, config = self._state, self._config
        result = TrainResult(
            steps=state.step,
            stop_reason=reason,
            eval_success_start=state.eval_success_start,
            eval_success_end=end.success_rate,
            eval_success_best=state.best_success,
            wall_s=state.wall_s,
            rollout_s=state.rollout_s,
            train_s=state.train_s,
            env_utilisation=self._usage.utilisation,
            box_minutes=self._usage.box_minutes,
            staleness_max=state.staleness_max,
            truncated=state.turns_truncated / state.turns if state.turns else None,
        )
        self._writer.summary(
            result,
            backend=config.backend,
            phase=config.active_phase,
            seed=config.seed,
            experiment=config.experiment,
            eval_success_templates=templates.success_rate,
        )
        return result

    def close(self) -> None:
        self._checkpoints.wait()
        self._timeline.close()
        self._servers.close()
        self._writer.close()
        self._progress.close()
