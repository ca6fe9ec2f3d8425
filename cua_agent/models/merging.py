"""A LoRA adapter merged into the model that it adapts, tensor by tensor: W + scale * B A (arXiv:2106.09685).

Computed in float32 and rounded once, to the dtype of W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cua_agent.models.policy import PolicyModel

_BASE_LAYER = ".base_layer"
_ADAPTER = "default"


@dataclass(frozen=True)
class Factors:
    """A module's adapter: `down` [r, inputs], `up` [outputs, r], and the `scale` of their product."""

    down: Tensor
    up: Tensor
    scale: float


def adapter_factors(policy: PolicyModel) -> dict[str, Factors]:
    """Copies of the adapter as it is, whole where it is sharded (collective then), by the name that the module has in
    the model without it; empty without an adapter."""
    return {
        name: Factors(
            _whole(module.lora_A[_ADAPTER].weight).clone(),
            _whole(module.lora_B[_ADAPTER].weight).clone(),
            module.scaling[_ADAPTER],
        )
        for name, module in policy.base_model.named_modules()
        if _ADAPTER in getattr(module, "lora_A", ())
    }


@torch.no_grad()
def merged_weights(policy: PolicyModel, factors: Mapping[str, Factors]) -> Iterator[tuple[str, Tensor]]:
    """All weights of the model with the adapter `factors` merged in, whole, by the names that they have without an
    adapter; tied ones once. Nothing of the policy changes."""
    model: Any = policy.base_model
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        module, _, kind = name.rpartition(".")
        module = module.removesuffix(_BASE_LAYER)
        factor = factors.get(module) if kind == "weight" else None
        weight = _whole(parameter)
        yield f"{module}.{kind}", weight if factor is None else _merged(weight, factor)


def _merged(weight: Tensor, factor: Factors) -> Tensor:
    change = factor.up.float() @ factor.down.float()
    return (weight.float() + factor.scale * change).to(weight.dtype)


def _whole(tensor: Tensor) -> Tensor:
    gather = getattr(tensor.detach(), "full_tensor", None)
    whole: Tensor = tensor.detach() if gather is None else gather()
    return whole
