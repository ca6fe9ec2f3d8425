"""What an update needs next, made while the GPU works on what it has."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def prefetched(makers: Iterable[Callable[[], T]], device: torch.device) -> Generator[T, None, None]:
    """What each of `makers` makes, in order, each made in a thread while the one before is worked on.

    On a CUDA `device` makers have a stream of their own: a copy in the stream of the work would come after it, and hold
    up whoever asks for it until then. That stream waits for the work before the last, whose memory it may be given.
    (Copies are out of plain memory: to ask for pinned memory holds a GPU up longer than they do.)
    """
    beside = _stream_beside(device) if device.type == "cuda" else None
    with ThreadPoolExecutor(1) as thread:
        coming: Future[T] | None = None
        for make in makers:
            if beside is not None:
                beside.wait_stream(torch.cuda.current_stream(device))
            present, coming = coming, thread.submit(_made, make, beside)
            if present is not None:
                yield present.result()
        if coming is not None:
            yield coming.result()


def _made(make: Callable[[], T], beside: torch.cuda.Stream | None) -> T:
    if beside is None:
        return make()
    with torch.cuda.stream(beside):
        made = make()
    beside.synchronize()
    return made


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """One for all updates: memory that the allocator gave out in a stream stays that stream's."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
