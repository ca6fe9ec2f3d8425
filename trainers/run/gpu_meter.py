"""What the GPU did while something ran: how long it had nothing to do, and the memory it needed at most."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from math import nan

import torch

_EVERY_S = 0.01


@dataclass(frozen=True)
class GpuFigures:
    """`wait_s`: seconds in which all that was asked of the GPU was done; `peak_gib`: the most memory that tensors took
    (`torch.cuda.max_memory_allocated`). NaN without a GPU."""

    wait_s: float = nan
    peak_gib: float = nan


class GpuMeter:
    """Watches the present CUDA device, if this process uses one, from `start` to `stop`."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._ended = threading.Event()
        self._looks = self._idle = 0

    def start(self) -> None:
        """Memory and waiting count from here."""
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        torch.cuda.reset_peak_memory_stats()
        self._stream = torch.cuda.current_stream()
        self._ended.clear()
        self._looks = self._idle = 0
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._look, name="gpu meter", daemon=True)
        self._thread.start()

    def stop(self) -> GpuFigures:
        """Since `start`."""
        if self._stream is None:
            return GpuFigures()
        seconds = time.perf_counter() - self._began
        self._ended.set()
        self._thread.join()
        self._stream = None
        idle = self._idle / self._looks if self._looks else 0.0
        return GpuFigures(idle * seconds, torch.cuda.max_memory_allocated() / 2**30)

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_S):
            stream = self._stream
            assert stream is not None
            self._idle += stream.query()  # type: ignore[no-untyped-call]
            self._looks += 1
