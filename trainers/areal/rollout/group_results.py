"""What became of the groups that AReaL plays: the way from its event loop's thread back to the trainer's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
    """Finished groups by their index, and the policy version at which running ones started. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._started: dict[int, int] = {}
        self._finished: list[FinishedGroup] = []

    def start(self, index: int, version: int) -> None:
        """A group starts with a policy version."""
        with self._changed:
            self._started[index] = version

    def finish(self, finished: FinishedGroup) -> None:
        """A group ended; whoever waits in `take` wakes up."""
        with self._changed:
            self._finished.append(finished)
            self._changed.notify_all()

    def started_at(self, index: int) -> int | None:
        """The policy version at which the group started, which no token of it is older than; None before that."""
        with self._changed:
            return self._started.get(index)

    def take(self, timeout: float) -> list[FinishedGroup]:
        """All groups that finished since the last call; waits for one up to `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished, timeout)
            taken, self._finished = self._finished, []
            return taken

    def forget(self, index: int) -> None:
        """Nobody asks for the group any more."""
        with self._changed:
            self._started.pop(index, None)
