"""The processes of AReaL's single-controller mode (`scheduler=local|ray|slurm`), and what they cannot train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from trainers.config.run import TrainConfig


class Workers(NamedTuple):
    """How many processes train, and how many play episodes."""

    training: int
    rollout: int


def workers_of(config: TrainConfig) -> Workers:
    """A GPU is one process's. Half of them train and half play, each with the policy in process; with vLLM one process
    plays, on all servers, and the others train. Without GPUs every node has one process of a kind."""
    gpus = config.n_nodes * config.n_gpus
    if config.inference.name == "vllm":
        return Workers(gpus - 1 if gpus else config.n_nodes, 1)
    return Workers(gpus // 2, gpus // 2) if gpus else Workers(config.n_nodes, config.n_nodes)


def is_one_machine(config: TrainConfig) -> bool:
    """Whether all processes run on this machine, so that none needs its network. Ray makes a cluster of this machine
    alone unless RAY_ADDRESS names one."""
    scheduler, named = config.scheduler.name, os.environ.get("RAY_ADDRESS", "local") != "local"
    return scheduler in ("none", "local") or (scheduler == "ray" and not named and config.n_nodes == 1)


def cluster_problems(config: TrainConfig) -> Iterator[str]:
    """Why the configuration cannot run in single-controller mode, a line each."""
    if config.scheduler.name == "none":
        for key, value, default in (("n_nodes", config.n_nodes, 1), ("n_gpus", config.n_gpus, 0)):
            if value != default:
                yield f"{key}={value} with scheduler=none: set scheduler=local, ray or slurm"
        return
    yield from _where_problems(config)
    if not is_one_machine(config) and not config.scheduler.trust_network:
        yield (
            f"scheduler={config.scheduler.name} with scheduler.trust_network=false: whoever reaches the workers' ports "
            "can run commands as you, for AReaL asks for no key; set it to true where nobody else does"
        )
    yield from _gpu_problems(config)
    if min(workers_of(config)) < 1:
        return
    if config.loader.name == "unsloth":
        yield f"loader.name=unsloth with scheduler={config.scheduler.name}: set loader=peft"
    if config.logging.blindness_every_steps:
        yield (
            f"logging.blindness_every_steps={config.logging.blindness_every_steps} with "
            f"scheduler={config.scheduler.name}: pixels stay with the workers; set it to 0"
        )
    training, playing = workers_of(config)
    for key, value, count, kind in (
        ("rollout.groups_per_step", config.rollout.groups_per_step, training, "training"),
        ("rollout.concurrency", config.rollout.concurrency, playing, "rollout"),
    ):
        if value % count:
            yield f"{key}={value} with {count} {kind} processes: allowed: multiples of {count}"
    if training > 1 and config.rollout.context != "full":
        yield (
            f"rollout.context={config.rollout.context} with {training} training processes: AReaL deals out groups with "
            "as many rows each; set rollout.context=full"
        )


def _where_problems(config: TrainConfig) -> Iterator[str]:
    if config.backend != "areal" or config.phase != 3:
        phase = f" phase={config.phase}" if config.backend == "areal" else ""
        yield f"scheduler={config.scheduler.name} with backend={config.backend}{phase}: allowed: backend=areal phase=3"
    if config.scheduler.name == "local" and config.n_nodes != 1:
        yield f"n_nodes={config.n_nodes} with scheduler=local: allowed: 1; set scheduler=ray or slurm"


def _gpu_problems(config: TrainConfig) -> Iterator[str]:
    wanted = "cuda" if config.n_gpus else "cpu"
    if config.loader.device != wanted:
        yield f"loader.device={config.loader.device} with n_gpus={config.n_gpus}: set loader.device={wanted}"
    total = config.n_nodes * config.n_gpus
    if total % 2 and config.inference.name == "local":
        yield f"n_gpus={config.n_gpus} with n_nodes={config.n_nodes}: half of all GPUs train; set an even number"
    if total == 1 and config.inference.name == "vllm":
        yield "n_gpus=1 with inference=vllm: one GPU is the rollout process's; allowed: at least 2"
