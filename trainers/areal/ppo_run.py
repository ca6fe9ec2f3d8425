"""The books of a run whose outer loop is AReaL's `PPOTrainer`: rows, evaluations, checkpoints, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from trainers.interrupts import interrupts_held
from trainers.protocol import Batch, EvalRecord, StepRecord, TrainResult
from trainers.rollouts import Collected, Usage
from trainers.run_book import RunBook
from trainers.run_course import RunCourse
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
    """What is the same wherever the engines of AReaL's trainer are."""

    def __init__(self, course: RunCourse, book: RunBook) -> None:
        self._course = course
        self._book = book
        self._held = ExitStack()  # Ctrl-C, while a step changes weights that it would leave torn
        self._present: tuple[Collected, Batch, Usage] | None = None
        self._latest: EvalRecord | None = None
        self.watch = Stopwatch()

    def train(self, loop: Callable[[], None]) -> TrainResult:
        """As `RunCourse.run`, with AReaL's `loop` in the middle."""
        return self._course.run(partial(self._train_until_stopped, loop))

    def collected(self, collected: Collected, usage: Usage) -> None:
        """What the coming step trains on; Ctrl-C waits from here to the step's end."""
        self._course.tell_lost(collected)
        self._present, self._latest = (collected, self._course.batch_of(collected), usage), None
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
        self._latest, reason = self._course.evaluate_split("seeds")
        if reason := reason or self._book.out_of_budget():
            raise _Stopped(reason)

    def _train_until_stopped(self, loop: Callable[[], None]) -> tuple[str, EvalRecord | None]:
        try:
            with self._held:
                loop()
        except _Stopped as stopped:
            return str(stopped), self._latest
        return self._book.out_of_budget() or "max_steps", self._latest
