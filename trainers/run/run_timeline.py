"""The run's own rows of the timeline: steps and evaluations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainers.episodes.best_effort import BestEffort
from trainers.protocol import Usage
from trainers.run.step_metrics import Timing
from trainers.timeline.log import RUN, TIMELINE, Row, TimelineLog, evaluation_row, step_row
from trainers.timeline.trace import write_trace


class RunTimeline:
    """Written by the process that keeps the run's books in `directory`; at the end it makes trace.json of all."""

    def __init__(self, directory: Path, megabytes: float) -> None:
        self._directory = directory
        self._log = TimelineLog(directory, RUN, megabytes)
        self._writing = BestEffort(directory / TIMELINE, "times") if megabytes > 0 else None
        self._collected_at = time.time()

    def collected(self) -> None:
        """The batch of the coming step is complete."""
        self._collected_at = time.time()

    def step(self, step: int, timing: Timing, usage: Usage) -> None:
        """A step ended."""
        times = {"rollout_s": timing.rollout_s, "train_s": timing.train_s, "sync_s": timing.sync_s}
        self._append(step_row(step, self._collected_at, {**times, "capacity_s": usage.capacity_s}))

    @contextmanager
    def evaluating(self, split: str, step: int) -> Iterator[None]:
        """An evaluation after `step` goes on inside."""
        began = time.time()
        try:
            yield
        finally:
            self._append(evaluation_row(split, step, began, time.time()))

    def close(self) -> None:
        """Every process has written what it has to tell."""
        if self._writing is not None:
            self._writing(partial(write_trace, self._directory))

    def _append(self, row: Row) -> None:
        if self._writing is not None:
            self._writing(partial(self._log.append, row))
