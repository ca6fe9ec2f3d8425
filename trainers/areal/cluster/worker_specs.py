"""What AReaL's schedulers are asked for: how many processes of a kind, and what each of them needs."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from areal.api.cli_args import (
    ClusterSpecConfig,
    GRPOConfig,
    InferenceEngineConfig,
    PPOActorConfig,
    SchedulerConfig,
    SchedulingSpec,
)

from trainers.areal.cluster.worker_process import CONTROLLER
from trainers.areal.config.translation import trainer_config
from trainers.areal.loopback import LOOPBACK, ONE_MACHINE, text_of_meeting_place
from trainers.config import TrainConfig, from_mapping
from trainers.config.cluster import is_one_machine, workers_of
from trainers.config.thread_settings import thread_settings

_SERVER = "trainers.areal.cluster.worker_process"


@dataclass
class WorkerActorConfig(PPOActorConfig):  # type: ignore[misc]
    """AReaL hands an engine in a worker its section of the configuration and nothing else: `run` is all of ours."""

    run: str = ""


@dataclass
class WorkerEngineConfig(InferenceEngineConfig):  # type: ignore[misc]
    """As `WorkerActorConfig`; `workers` is the number of processes that play."""

    run: str = ""
    workers: int = 1


def controller_config(config: TrainConfig, run_directory: Path) -> GRPOConfig:
    """`trainer_config` for a controller."""
    workers = workers_of(config)
    base = trainer_config(config, run_directory, workers.training)
    run = json.dumps(asdict(config))
    spec = worker_spec(config, run_directory)
    return replace(
        base,
        scheduler=SchedulerConfig(type=config.scheduler.name),
        cluster=ClusterSpecConfig(
            fileroot=base.cluster.fileroot,
            n_nodes=config.n_nodes,
            n_gpus_per_node=gpus_per_node(config),
            name_resolve=base.cluster.name_resolve,
        ),
        actor=WorkerActorConfig(**_values(base.actor) | {"run": run, "scheduling_spec": (spec,)}),
        rollout=WorkerEngineConfig(
            **_values(base.rollout)
            | {
                "run": run,
                "workers": workers.rollout,
                "backend": f"vllm:d{workers.rollout}",
                "scheduling_spec": (replace(spec, ray_placement_strategy="separate"),),
                "check_trajectory_format": False,  # a group without signal comes back without its tensors
            }
        ),
    )


def worker_spec(config: TrainConfig, run_directory: Path) -> SchedulingSpec:
    """One worker process of either kind."""
    here = is_one_machine(config)
    local = {CONTROLLER: str(os.getpid()), ONE_MACHINE: text_of_meeting_place(run_directory)} if here else {}
    return SchedulingSpec(
        cpu=config.threads,
        gpu=1 if config.n_gpus else 0,
        mem=config.areal.worker_memory_gb,
        cmd=f"{sys.executable} -m {_SERVER}" + (f" --host {LOOPBACK}" if here else ""),
        env_vars={
            **thread_settings(config.threads),
            "TORCHDYNAMO_DISABLE": str(int(not config.loader.compile)),
            **local,
        },
        container_type="none",
    )


def gpus_per_node(config: TrainConfig) -> int:
    """GPUs of a node that one job (training or rollouts) takes: Slurm gives each job whole nodes of that many."""
    return math.gcd(config.n_gpus, *workers_of(config)) if config.n_gpus else 1


def run_config(run: str) -> TrainConfig:
    """The configuration that a worker was handed."""
    return from_mapping(json.loads(run))


def _values(section: Any) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in fields(section)}
