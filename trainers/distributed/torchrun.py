"""The process group that a launcher (torchrun) put this process into, and what several processes cannot train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from trainers.config import ConfigError, TrainConfig
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup


@contextmanager
def process_group_of_environment(config: TrainConfig) -> Iterator[ProcessGroup]:
    """The process_group that a launcher (torchrun) put this process into.

    Raises `ConfigError` for what several processes cannot train.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    check_processes(config, size)
    from trainers.distributed.torch_process_group import TorchProcessGroup

    process_group = TorchProcessGroup(int(os.environ["RANK"]), size, config.loader.device)
    try:
        yield process_group
    finally:
        process_group.close()


def check_processes(config: TrainConfig, size: int) -> None:
    """Raise `ConfigError` for what `size` processes cannot train."""
    if config.scheduler.name != "none":
        raise ConfigError(f"scheduler={config.scheduler.name} with {size} processes: start one, it starts the others")
    if config.active_phase not in (2, 3):
        phase = "" if config.active_phase is None else f" phase={config.phase}"
        raise ConfigError(
            f"backend={config.backend}{phase} with {size} processes: allowed: backend=areal phase=2 or phase=3"
        )
    if ":" in config.loader.device:
        raise ConfigError(
            f"loader.device={config.loader.device} with {size} processes: allowed: cuda (each process takes the GPU of "
            "its local rank) or cpu"
        )
    for key in ("groups_per_step", "concurrency"):
        value = getattr(config.rollout, key)
        if value % size:
            raise ConfigError(f"rollout.{key}={value} with {size} processes: allowed: multiples of {size}")
    inference, served_beside = config.inference, config.lora.enabled and config.inference.sync != "merged"
    if inference.name == "vllm" and not served_beside and len(inference.servers) < size:
        raise ConfigError(
            f"inference.servers={','.join(inference.servers)} with {size} processes: allowed: at least {size} servers, "
            "because each process loads whole weights into servers of its own (adapters share one)"
        )
