"""Several processes of AReaL's SPMD mode as a process_group."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
_PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: as long as AReaL's do."""


def init_default_group() -> None:
    """The default group of torch.distributed: gloo, and NCCL for tensors on GPUs. AReaL reduces both kinds."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)


class _Interrupted(Exception):  # noqa: N818 (nothing is wrong)
    """Ctrl-C, as what asyncio treats like any exception of a task."""


class TorchProcessGroup:
    """Implements `ProcessGroup` over torch.distributed, which it sets up. With `device` "cuda" every process has the
    GPU of its local rank.

    A process that stops alone would leave the others waiting. So Ctrl-C (which a launcher passes on to all) is only
    noted, and `interruptible` work ends with it: then all processes stop together.
    """

    def __init__(self, rank: int, size: int, device: str = "cpu") -> None:
        self._rank, self._size = rank, size
        self._shared_error: BaseException | None = None
        self._interrupted = False
        signal.signal(signal.SIGINT, self._note)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        init_default_group()
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._size

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: T) -> T:
        holder: list[Any] = [value]
        dist.broadcast_object_list(holder, src=0, group=self._group)
        agreed: T = holder[0]
        return agreed

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        mine: BaseException | None = None
        result: T | None = None
        try:
            result = work()
        except _Interrupted:
            mine = KeyboardInterrupt()
        except BaseException as error:
            mine = error
        outcomes = self.all_gather((result, mine and portable(mine)))
        for rank, (_, theirs) in enumerate(outcomes):
            if theirs is not None:
                self._shared_error = mine if rank == self._rank else theirs
                raise self._shared_error or theirs
        return [value for value, _ in outcomes]  # type: ignore[misc]

    def interruptible(self, report: Callable[P, None]) -> Callable[P, None]:
        def report_unless_interrupted(*args: P.args, **kwargs: P.kwargs) -> None:
            if self._interrupted:
                raise _Interrupted
            report(*args, **kwargs)

        return report_unless_interrupted

    def failed_on_all(self, error: BaseException) -> bool:
        return error is self._shared_error

    def close(self) -> None:
        dist.destroy_process_group()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._interrupted = True


def portable(error: E) -> E | RuntimeError:
    """`error`, or what can be said of it when it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
