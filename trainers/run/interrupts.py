"""Ctrl-C at a safe moment."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 30.0


class BrokenOff(KeyboardInterrupt):
    """Ctrl-C broke off what should have happened wholly: what it was changing may be torn."""


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Deliver a Ctrl-C that arrives inside only at the end, so that what is inside happens wholly, however often it is
    pressed; one that comes 30 seconds after the first breaks it off, should it hang, and raises `BrokenOff`."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[float, int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((time.monotonic(), number, frame))
        if len(held) > 1:
            waited_s = held[-1][0] - held[0][0]
            if waited_s >= _PATIENCE_S:
                raise BrokenOff
            left_s = _PATIENCE_S - waited_s
            sys.stderr.write(f"this is brought to its end first; Ctrl-C in {left_s:.0f} s or later breaks it off\n")

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0][1:])
