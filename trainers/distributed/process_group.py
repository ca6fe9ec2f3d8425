"""The processes that run one training together: what they have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Communicator(Protocol):
    """`size` processes that take the same steps at the same time; this one is number `rank`.

    The methods with a result are collective: every process must call them, in the same order.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, to each of them."""
        ...


class ProcessGroup(Communicator, Protocol):
    """Communicator that run one training loop together. Process 0 keeps the books."""

    def broadcast(self, value: T) -> T:
        """The value of process 0."""
        ...

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        """Every process does its own `work`; the results of all, by rank. An exception of one is raised in all."""
        ...

    def interruptible(self, report: Callable[P, None]) -> Callable[P, None]:
        """`report` for work of `run_on_all`: raises a Ctrl-C when all processes can stop together. Not collective."""
        ...

    def failed_on_all(self, error: BaseException) -> bool:
        """Whether `error` ended the same call in every process, so that they can still act together. Not collective."""
        ...


class SingleProcess:
    """A process_group of one process."""

    rank = 0
    size = 1

    def all_gather(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, value: T) -> T:
        return value

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        return [work()]

    def interruptible(self, report: Callable[P, None]) -> Callable[P, None]:
        return report

    def failed_on_all(self, error: BaseException) -> bool:  # noqa: ARG002 - there is nobody else
        return True


SINGLE_PROCESS: ProcessGroup = SingleProcess()
