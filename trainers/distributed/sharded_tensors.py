"""Tensors that several processes hold a shard of each (DTensor), and whole ones, told apart by nobody else."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
