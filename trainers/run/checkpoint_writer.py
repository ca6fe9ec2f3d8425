"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trainers.protocol import Snapshot


@dataclass
class _Writing:
    """One checkpoint on its way to the disk."""

    work: Callable[[], None]
    failed: Callable[[Exception], None]
    thread: threading.Thread | None = None
    error: Exception | None = field(default=None)

    def __call__(self) -> None:
        try:
            self.work()
        except Exception as error:  # told in the thread that trains
            self.error = error


class CheckpointWriter:
    """Writes one snapshot after the other; a detached one in a thread of its own, so that only the next one and the end
    of the run wait for it."""

    def __init__(self) -> None:
        self._writing: _Writing | None = None

    def write(
        self,
        snapshot: Snapshot,
        path: Path,
        *,
        written: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Write `snapshot` to `path`, and call `written` where that happens; `failed` is called in this thread, by this
        call or a later one."""
        self.wait()

        def work() -> None:
            snapshot.write(path)
            written()

        self._writing = _Writing(work, failed)
        if not snapshot.detached:
            self._writing()
            self.wait()
            return
        self._writing.thread = threading.Thread(target=self._writing, name="checkpoint")
        self._writing.thread.start()

    def wait(self) -> None:
        """Until what was begun is on the disk, or has failed."""
        if self._writing is None:
            return
        if self._writing.thread is not None:
            self._writing.thread.join()
        writing, self._writing = self._writing, None
        if writing.error is not None:
            writing.failed(writing.error)

    def look(self) -> None:
        """Tell of a failure as soon as there is one; waits for nothing."""
        if self._writing is not None and self._writing.thread is not None and not self._writing.thread.is_alive():
            self.wait()
