"""The books of a run whose outer loop is AReaL's `PPOTrainer`: rows, evaluations, checkpoints, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cua_agent.tasks import CUATask, EvalSplit
from trainers.checkpoint import find_checkpoint
from trainers.config import TrainConfig
from trainers.evaluation import evaluate
from trainers.grpo.advantages import group_advantages
from trainers.interrupts import interrupts_held
from trainers.metrics import ProgressReporter
from trainers.protocol import Batch, EvalRecord, StepRecord, TrainResult
from trainers.rollouts import Collected, EpisodePlayer, Usage
from trainers.run_book import RunBook
from trainers.step_metrics import Timing, staleness


class _Stopped(Exception):  # noqa: N818 (the run is over, nothing is wrong)
    """Leaves AReaL's loop, which knows no early end."""


class Stopwatch:
    """When the parts of a step began and ended: seconds since an arbitrary moment."""

    def __init__(self) -> None:
        self.collecting = self.collected = self.publishing = self.published = time.perf_counter()

    def mark(self, name: str) -> None:
        setattr(self, name, time.perf_counter())


class PPORun:
    """What is the same wherever the engines of AReaL's trainer are. `player` plays evaluations."""

    def __init__(
        self,
        config: TrainConfig,
        progress: ProgressReporter,
        book: RunBook,
        player: EpisodePlayer,
        eval_tasks: Mapping[EvalSplit, Sequence[CUATask]],
    ) -> None:
        self._config = config
        self._progress = progress
        self._book = book
        self._player = player
        self._eval_tasks = eval_tasks
        self._held = ExitStack()  # Ctrl-C, while a step changes weights that it would leave torn
        self._present: tuple[Collected, Batch, Usage] | None = None
        self._latest: EvalRecord | None = None
        self.watch = Stopwatch()

    def train(self, loop: Callable[[], None]) -> TrainResult:
        """As `TrainingLoop.train`, with AReaL's `loop` in the middle."""
        self._book.start()
        try:
            with self._held:
                reason = self._train_until_stopped(loop)
            end = self._latest or self._evaluate_split("seeds")[0]
            templates, _ = self._evaluate_split("templates")
        except BaseException as error:
            self._book.broken_off(error)
            raise
        return self._book.finish(reason, end, templates)

    def collected(self, collected: Collected, usage: Usage) -> None:
        """What the coming step trains on; Ctrl-C waits from here to the step's end."""
        if lost := collected.lost:
            self._progress.message(f"{len(lost)} episodes were lost and replaced; the last: {lost[-1]}")
        rows = [row for group in collected.kept for row in group.rows]
        batch = group_advantages(rows, self._config.advantage).batch
        self._book.batch(batch)
        self._present, self._latest = (collected, batch, usage), None
        self.watch.mark("collected")
        self._held.enter_context(interrupts_held())

    def step_ended(self, record: StepRecord) -> None:
        """The step's update is published."""
        assert self._present is not None
        collected, batch, usage = self._present
        watch, book = self.watch, self._book
        timing = Timing(
            rollout_s=usage.wall_s,
            train_s=watch.publishing - watch.collected,
            sync_s=watch.published - watch.publishing,
            step_s=watch.published - watch.collecting,
        )
        stale = staleness(batch.trajectories, book.state.policy_version)
        book.new_version()
        book.step(collected, batch, [record], stale, timing, usage)
        book.checkpoint_when_due()
        self._held.close()
        if not book.evaluation_due and (reason := book.out_of_budget()):
            raise _Stopped(reason)

    def evaluate_when_due(self) -> None:
        """AReaL's trainer asks after every step, or when its `Evaluator` says so."""
        if not self._book.evaluation_due:
            return
        self._latest, reason = self._evaluate_split("seeds")
        if reason := reason or self._book.out_of_budget():
            raise _Stopped(reason)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """`eval.episodes` episodes on held-out seeds. Raises `EnvironmentFailure` when every episode was lost."""
        on_done = partial(self._progress.phase, "evaluation")
        return evaluate(self._player, tasks, self._config.eval.episodes, self._book.state.step, on_done)

    def resume(self, resume: str, load: Callable[[Path], None]) -> None:
        path = find_checkpoint(resume)
        load(path)
        self._progress.message(f"resumed from {path} at step {self._book.state.step}")

    def _train_until_stopped(self, loop: Callable[[], None]) -> str:
        book = self._book
        reason: str | None = None
        if book.baseline_due:
            self._latest, reason = self._evaluate_split("seeds")
            self._evaluate_split("templates")
        reason = reason or book.out_of_budget()
        if reason is not None:
            return reason
        try:
            loop()
        except _Stopped as stopped:
            return str(stopped)
        return book.out_of_budget() or "max_steps"

    def _evaluate_split(self, split: EvalSplit) -> tuple[EvalRecord, str | None]:
        record = self.evaluate(self._eval_tasks[split])
        return record, self._book.evaluation(record, split)
