"""What a run does while a step's groups are collected: it shows how far they are, and ends when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainers.protocol import Collected
from trainers.run.metrics import ProgressReporter
from trainers.run.stopping import Stopped

_SILENCE_S = 20.0
"""How long a collecting may last without a line; the next one comes after twice as long."""


class CollectingWatch:
    """An `OnCollecting` for one step. `out_of_budget` tells why the run should end after so many seconds of collecting;
    then the watch raises `Stopped`."""

    def __init__(
        self,
        progress: ProgressReporter,
        out_of_budget: Callable[[float], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._out_of_budget = out_of_budget
        self._clock = clock
        self._started = clock()
        self._speaks_after_s = _SILENCE_S

    def __call__(self, done: int, wanted: int, collected: Collected) -> None:
        self._progress.phase("rollouts", done, wanted)
        lasted_s = self._clock() - self._started
        if reason := self._out_of_budget(lasted_s):
            raise Stopped(reason, lasted_s)
        if lasted_s >= self._speaks_after_s:
            self._speaks_after_s = 2 * lasted_s
            self._progress.message(
                f"collecting for {lasted_s:.0f} s: {done} of {wanted} done; so far {without_signal(collected)}, "
                f"{len(collected.lost)} episodes lost"
            )


def nothing_to_learn(collected: Collected) -> str:
    """Why a step has no group to train on. A group without signal takes a place of the window, also of a later step."""
    if collected.filtered:
        return without_signal(collected)
    return "its places went to groups without signal that earlier steps have counted"


def without_signal(collected: Collected) -> str:
    """Why there is nothing to learn from most groups that were played."""
    return f"{len(collected.filtered)} groups without signal (equal rewards in a group)"
