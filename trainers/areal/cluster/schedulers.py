"""AReaL's schedulers, told of the run, and how they end."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
from areal.api import Job, Scheduler
from areal.api.cli_args import GRPOConfig
from areal.infra.scheduler.local import LocalScheduler

from trainers.areal.cluster.worker_specs import gpus_per_node
from trainers.areal.loopback import LOOPBACK
from trainers.config import ConfigError, TrainConfig
from trainers.config.cluster import workers_of

_STARTUP_S = 300.0
"""How long workers may take to start: they import torch, and Slurm may keep them waiting."""


class QuietLocalScheduler(LocalScheduler):  # type: ignore[misc]
    """AReaL's local scheduler; what its workers print goes to their log files only."""

    def create_workers(self, job: Job, *args: Any, **kwargs: Any) -> list[str]:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            workers: list[str] = super().create_workers(job, *args, **kwargs)
        return workers


def check_machine(config: TrainConfig) -> None:
    """Raise `ConfigError` when Slurm, or the GPUs asked for, cannot be had, before AReaL starts anything.

    AReaL's local scheduler deals out GPUs that are not there, and its Ray scheduler takes the controller's machine for
    a model of all others.
    """
    here = torch.cuda.device_count()
    if config.scheduler.name == "local" and config.n_gpus > here:
        raise ConfigError(f"n_gpus={config.n_gpus} with scheduler=local: this machine has {here}; allowed: 0..{here}")
    if config.scheduler.name == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("scheduler=slurm: this machine has no sbatch; allowed here: scheduler=local or ray")
    if config.scheduler.name == "ray" and config.n_gpus and not here:
        raise ConfigError(
            f"n_gpus={config.n_gpus} with scheduler=ray: AReaL asks Ray for GPUs only from a machine that has one; "
            "start the controller on such a machine, or set n_gpus=0"
        )


@contextmanager
def opened_scheduler(config: TrainConfig, native: GRPOConfig) -> Iterator[Scheduler]:
    """The scheduler that `scheduler` names; at the end, however it comes, every worker is ended."""
    scheduler = _SCHEDULERS[config.scheduler.name](config, native)
    try:
        yield scheduler
    finally:
        with suppress(Exception):  # the workers may be gone already
            scheduler.delete_workers(None)
        if config.scheduler.name == "ray":
            import ray

            ray.shutdown()


def _local(config: TrainConfig, native: GRPOConfig) -> Scheduler:
    return QuietLocalScheduler(startup_timeout=_STARTUP_S, gpu_devices=own_gpus(config.n_gpus), **_names(native))


def own_gpus(count: int) -> list[str]:
    """The first `count` GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(n) for n in range(count)]


def _ray(config: TrainConfig, native: GRPOConfig) -> Scheduler:
    """On the cluster that RAY_ADDRESS names, or one of this machine alone."""
    import ray
    from areal.infra.scheduler.ray import RayScheduler

    address = os.environ.get("RAY_ADDRESS", "local")  # Ray itself would join any cluster that this machine has seen
    here: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": LOOPBACK} if address == "local" else {}
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    wanted, there = config.threads * sum(workers_of(config)), ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    if wanted > there:
        ray.shutdown()
        raise ConfigError(
            f"threads={config.threads} with {sum(workers_of(config))} worker processes: Ray has {there:g} CPUs; "
            f"set threads={max(1, int(there) // sum(workers_of(config)))}, or use a larger cluster (RAY_ADDRESS)"
        )
    return RayScheduler(startup_timeout=_STARTUP_S, exp_config=native)


def _slurm(config: TrainConfig, native: GRPOConfig) -> Scheduler:
    from areal.infra.scheduler.slurm import SlurmScheduler

    return SlurmScheduler(
        n_gpus_per_node=gpus_per_node(config),
        container_type="none",
        container_mounts=None,
        startup_timeout=_STARTUP_S,
        **_names(native),
    )


_SCHEDULERS = {"local": _local, "ray": _ray, "slurm": _slurm}


def _names(native: GRPOConfig) -> dict[str, Any]:
    """What AReaL takes from `exp_config`. With that, its schedulers configure each worker, and wait for ever for one
    that died on its way up; our workers have their configuration already."""
    root = Path(native.cluster.name_resolve.nfs_record_root)
    root.mkdir(parents=True, exist_ok=True)
    return {
        "experiment_name": native.experiment_name,
        "trial_name": native.trial_name,
        "fileroot": native.cluster.fileroot,
        "nfs_record_root": str(root),
    }
