"""All weights of one version of the policy, its adapter merged in: as tensors or as files, while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cua_agent.models.merging import adapter_factors, merged_weights
from cua_agent.models.policy import PolicyModel

_FILE = "model.safetensors"


class WholeWeights:
    """The weights as they are now, in files in `directory`. To `keep` them on the GPU instead, for servers that read
    it, what is trained is copied there, and files are written when another server first wants some. Shards of several
    processes are always written at once: that is collective, and a server that comes back later is not.
    """

    def __init__(self, policy: PolicyModel, directory: Path, *, keep: bool) -> None:
        self._policy = policy
        self._directory = directory
        self._lock = threading.Lock()
        self._written = False
        self._factors = adapter_factors(policy)
        self._copies: dict[str, Tensor] = {}
        self.in_memory = keep and can_stay(policy)
        if not self.in_memory:
            self.write()
        elif not self._factors:
            self._copies = {name: value.detach().clone() for name, value in policy.trainable_parameters()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by their names in a checkpoint, on the policy's device; only where they are `in_memory`."""
        for name, weight in merged_weights(self._policy, self._factors):
            yield name, self._copies.get(name, weight)

    def write(self) -> None:
        """Have the directory hold the weights; once."""
        with self._lock:
            if not self._written:
                weights = {name: weight.cpu().contiguous() for name, weight in self.tensors()}
                save_file(weights, self._directory / _FILE, metadata={"format": "pt"})
                self._written = True


def can_stay(policy: PolicyModel) -> bool:
    """Whether the weights lie on a GPU, and other processes hold no parts of them."""
    shards = any(hasattr(parameter, "full_tensor") for parameter in policy.model.parameters())
    return policy.device.type == "cuda" and not (shards and torch.distributed.get_world_size() > 1)
