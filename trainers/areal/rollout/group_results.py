"""What became of the groups that AReaL plays: the way from its event loop's thread back to the trainer's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainers.protocol import Group


@dataclass(frozen=True)
class FinishedGroup:
    """A group that was played to its end; episodes may be missing from it (`lost` says why each was), all of them when
    `error` broke the group off."""

    index: int
    group: Group
    lost: Sequence[str] = ()
    error: Exception | None = None


class GroupResults:
    """Finished groups, and the policy version at which running ones started. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._started: dict[int, int] = {}
        self._finished: list[FinishedGroup] = []

    def start(self, index: int, version: Callable[[], int]) -> None:
        """A group is about to ask for its first token. Reading the version is one act with noting it: no version may be
        published, and a batch handed out, in between."""
        with self._changed:
            if index not in self._started:
                self._started[index] = version()

    def finish(self, finished: FinishedGroup) -> None:
        """A group ended; whoever waits in `take` wakes up."""
        with self._changed:
            self._finished.append(finished)
            self._changed.notify_all()

    def starts(self) -> dict[int, int]:
        """The policy version at which each group started that did and was not taken; no token of it is older."""
        with self._changed:
            return dict(self._started)

    def take(self, timeout: float) -> list[FinishedGroup]:
        """All groups that finished since the last call; waits for one up to `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished, timeout)
            taken, self._finished = self._finished, []
            for finished in taken:
                self._started.pop(finished.index, None)
            return taken
