"""The part of a configuration that concerns one process of several."""

from __future__ import annotations

from dataclasses import replace

from trainers.config import TrainConfig
from trainers.distributed.process_group import ProcessGroup


def config_of_rank(config: TrainConfig, process_group: ProcessGroup) -> TrainConfig:
    """What this process collects of a step, and with which servers."""
    rollout, servers = config.rollout, config.inference.servers[process_group.rank :: process_group.size]
    groups, concurrency = rollout.groups_per_step // process_group.size, rollout.concurrency // process_group.size
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
