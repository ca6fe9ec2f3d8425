"""Torch threads of a process in which one thread samples while another one trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.config import TrainConfig


@dataclass(frozen=True)
class ThreadShares:
    """How many torch threads the sampling and the training thread compute with."""

    sampling: int
    training: int


def thread_shares(config: TrainConfig) -> ThreadShares | None:
    """Half of `threads` each; at a staleness bound of 0, where the two take turns, training has those besides that do
    not wait in the other's team. None where only one of the two computes on the CPU.

    Each thread that computes has an OpenMP team of its own, and when the teams together are larger than the machine,
    their members go to sleep between any two operations: with teams of 2 and 2 on two cores an update took 1.3 times
    as long as with 1 and 2, a step at a bound of 2 took 1.1 times as long as with 1 and 1.
    """
    if config.inference.name != "local" or config.loader.device != "cpu":
        return None
    sampling = max(1, config.threads // 2)
    alternate = config.rollout.max_staleness == 0
    return ThreadShares(sampling, max(1, config.threads - sampling + alternate))


async def compute_with(threads: int) -> None:
    """For the thread of the event loop that this runs on, from now on."""
    torch.get_num_threads()  # a thread that asks for the first time takes the number of whoever set one last
    torch.set_num_threads(threads)
