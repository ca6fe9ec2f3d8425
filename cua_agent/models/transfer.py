"""To a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, on its way to `device` where that is a CUDA device: plain memory has been read when this returns, and
    the GPU comes to the copy in its turn. Others are waited for; for MPS, memory could be freed before it is read."""
    return tensor.to(device, non_blocking=device.type == "cuda")
