"""The books of a run whose outer loop is AReaL's `PPOTrainer`: rows, evaluations, checkpoints, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from trainers.grpo.checks import not_finite
from trainers.protocol import Batch, Collected, EvalRecord, StepRecord, TrainResult, Usage
from trainers.run.gpu_meter import GpuFigures, GpuMeter
from trainers.run.interrupts import interrupts_held
from trainers.run.lifecycle import RunLifecycle
from trainers.run.recorder import RunRecorder
from trainers.run.step_metrics import Staleness, Timing, staleness
from trainers.run.stopping import Stopped


class Stopwatch:
    """When the parts of a step began and ended: seconds since an arbitrary moment."""

    def __init__(self) -> None:
        self.collecting = self.collected = self.publishing = self.published = time.perf_counter()

    def mark(self, name: str) -> None:
        """A part of the step, by the name of its attribute, began or ended."""
        setattr(self, name, time.perf_counter())


class PPOLifecycle:
    """What is the same wherever the engines of AReaL's trainer are."""

    def __init__(self, lifecycle: RunLifecycle, recorder: RunRecorder) -> None:
        self._lifecycle = lifecycle
        self._recorder = recorder
        self._held = ExitStack()  # Ctrl-C, while a step changes weights that it would leave torn
        self._present: tuple[Collected, Batch, Staleness, Usage] | None = None
        self._updates: list[StepRecord] = []
        self.seen: dict[str, float] = {}
        """Figures of the present step besides those of its update."""
        self._unusable: str | None = None
        self._latest: EvalRecord | None = None
        self.watch = Stopwatch()
        self._meter, self._gpu = GpuMeter(), GpuFigures()

    def train(self, loop: Callable[[], None]) -> TrainResult:
        """As `RunLifecycle.run`, with AReaL's `loop` in the middle."""
        return self._lifecycle.run(partial(self._train_until_stopped, loop))

    def collected(self, collected: Collected, usage: Usage) -> bool:
        """What the coming step trains on; Ctrl-C waits from here to the step's end. Returns whether its numbers can be
        trained on; if not, AReaL's trainer gets an empty batch."""
        batch = self._lifecycle.batch_of(collected)
        stale = staleness(batch.trajectories, self._recorder.state.policy_version)
        self._present, self._latest = (collected, batch, stale, usage), None
        self.watch.mark("collected")
        self._meter.start()
        self._held.enter_context(interrupts_held())
        self._unusable = not_finite(batch)
        return self._unusable is None

    def learnt(self, update: StepRecord | None) -> int | None:
        """The step's update is over; there was none if there was nothing to learn from. Returns the version under which
        to serve the weights if it changed them (AReaL's trainer counts its steps, whatever happened in them)."""
        if self._unusable is not None:
            update = StepRecord({}, skipped=True, reason=self._unusable)
        seen, self.seen = self.seen, {}
        self._updates = [replace(update, metrics={**update.metrics, **seen})] if update is not None else []
        self.watch.mark("publishing")
        self._gpu = self._meter.stop()
        return None if update is None or update.skipped else self._recorder.new_version()

    def step_ended(self) -> None:
        """What the step's update changed is published."""
        assert self._present is not None
        collected, batch, stale, usage = self._present
        watch, recorder = self.watch, self._recorder
        timing = Timing(
            rollout_s=usage.wall_s,
            train_s=watch.publishing - watch.collected,
            sync_s=watch.published - watch.publishing,
            step_s=watch.published - watch.collecting,
            gpu=self._gpu,
        )
        recorder.step(collected, batch, self._updates, stale, timing, usage)
        self._held.close()

    def settle(self) -> None:
        """The step has its row: evaluate and save what is due, in this order, so that whoever goes on from a checkpoint
        lacks nothing of its step. Raises `Stopped` when no further step may begin."""
        recorder, reason = self._recorder, None
        if recorder.evaluation_due:
            self._latest, reason = self._lifecycle.evaluate_split("seeds")
        recorder.checkpoint_when_due()
        if reason := reason or recorder.out_of_budget():
            raise Stopped(reason)

    def _train_until_stopped(self, loop: Callable[[], None]) -> tuple[str, EvalRecord | None]:
        try:
            with self._held:
                loop()
        except Stopped as stopped:  # AReaL's loop knows no early end
            self._recorder.stopped(stopped)
            return stopped.reason, self._latest
        return self._recorder.out_of_budget() or "max_steps", self._latest
