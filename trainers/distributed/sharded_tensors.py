"""Tensors that several processes hold a shard of each (DTensor), and whole ones, told apart by nobody else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cua_agent.models.weight_files import WeightFiles


def whole(tensor: Tensor) -> Tensor:
    """`tensor` detached, and gathered when it is sharded; collective then."""
    detached = tensor.detach()
    gather = getattr(detached, "full_tensor", None)
    gathered: Tensor = detached if gather is None else gather()
    return gathered


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as `parameter` is; collective then. Of a parameter that is whole, `tensor` itself."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Tensor = distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]
    return sharded


def held_rows(tensor: Tensor) -> slice:
    """The rows of a whole tensor that this process holds as `tensor`: FSDP cuts the first dimension into equal parts,
    of which the last ones may be shorter."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return slice(None)
    part = -(-tensor.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * part, tensor.shape[0])
    return slice(start, min(start + part, tensor.shape[0]))


@torch.no_grad()
def read_into(tensors: Mapping[str, Tensor], files: WeightFiles) -> None:
    """Overwrite `tensors` with what the `files` have under their names; every process reads the rows that it holds."""
    for name, rows in files.read({name: held_rows(tensor) for name, tensor in tensors.items()}):
        _held(tensors[name]).copy_(rows)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], most: float, group: dist.ProcessGroup) -> Tensor:
    """Scale the gradients of `parameters` down to a norm of at most `most`, as `torch.nn.utils.clip_grad_norm_` does
    with whole ones; the processes of `group` hold shards of them. Returns the norm before, 0-d float32. Collective;
    nothing waits for the device."""
    gradients = [_held(parameter.grad) for parameter in parameters if parameter.grad is not None]
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    dist.all_reduce(squares, group=group)
    norm = squares.sqrt()
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
