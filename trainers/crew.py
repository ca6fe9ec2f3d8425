"""The processes that run one training together: what they have to agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from trainers.config import ConfigError, TrainConfig
from trainers.rollouts import OnDone

T = TypeVar("T")


class Peers(Protocol):
    """`size` processes that take the same steps at the same time; this one is number `rank`.

    The methods with a result are collective: every process must call them, in the same order.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, to each of them."""
        ...


class Crew(Peers, Protocol):
    """Peers that run one training loop together. Process 0 keeps the books."""

    def agree(self, value: T) -> T:
        """The value of process 0."""
        ...

    def do(self, work: Callable[[], T]) -> list[T]:
        """Every process does its own `work`; the results of all, by rank. An exception of one is raised in all."""
        ...

    def interruptible(self, on_done: OnDone) -> OnDone:
        """`on_done` for work that is done by `do`: raises a Ctrl-C at a moment when all processes can stop together.
        Not collective."""
        ...

    def failed_together(self, error: BaseException) -> bool:
        """Whether `error` ended the same call in every process, so that they can still act together. Not collective."""
        ...


class Alone:
    """A crew of one process."""

    rank = 0
    size = 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def agree(self, value: T) -> T:
        return value

    def do(self, work: Callable[[], T]) -> list[T]:
        return [work()]

    def interruptible(self, on_done: OnDone) -> OnDone:
        return on_done

    def failed_together(self, error: BaseException) -> bool:  # noqa: ARG002 - there is nobody else
        return True


ALONE: Crew = Alone()


@contextmanager
def crew_of_environment(config: TrainConfig) -> Iterator[Crew]:
    """The crew that a launcher (torchrun) put this process into.

    Raises `ConfigError` for what several processes cannot train.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    check_processes(config, size)
    from trainers.areal.crew import ProcessCrew

    crew = ProcessCrew(int(os.environ["RANK"]), size)
    try:
        yield crew
    finally:
        crew.close()


def check_processes(config: TrainConfig, size: int) -> None:
    """Raise `ConfigError` for what `size` processes cannot train."""
    if config.scheduler != "none":
        raise ConfigError(f"scheduler={config.scheduler} with {size} processes: start one, it starts the others")
    if config.active_phase not in (2, 3):
        phase = "" if config.active_phase is None else f" phase={config.phase}"
        raise ConfigError(
            f"backend={config.backend}{phase} with {size} processes: allowed: backend=areal phase=2 or phase=3"
        )
    for key in ("groups_per_step", "concurrency"):
        value = getattr(config.rollout, key)
        if value % size:
            raise ConfigError(f"rollout.{key}={value} with {size} processes: allowed: multiples of {size}")
    if config.inference.name == "vllm" and len(config.inference.servers) < size:
        raise ConfigError(
            f"inference.servers={','.join(config.inference.servers)} with {size} processes: allowed: at least {size} "
            "servers, because each process loads its weights into servers of its own"
        )


def own_share(config: TrainConfig, crew: Crew) -> TrainConfig:
    """What this process collects of a step, and with which servers."""
    rollout, servers = config.rollout, config.inference.servers[crew.rank :: crew.size]
    groups, concurrency = rollout.groups_per_step // crew.size, rollout.concurrency // crew.size
    return replace(
        config,
        rollout=replace(rollout, groups_per_step=groups, concurrency=concurrency),
        inference=replace(config.inference, servers=servers or config.inference.servers),
    )


def without_trackers(config: TrainConfig) -> TrainConfig:
    """For a process that keeps no books."""
    nothing = replace(config.logging, tensorboard=False, wandb=False, trackio=False, save_trajectories=0)
    return replace(config, logging=nothing)


def without_trajectories(config: TrainConfig) -> TrainConfig:
    """For a process that sees no pixels, without which a recorded batch is of no use."""
    return replace(config, logging=replace(config.logging, save_trajectories=0))
