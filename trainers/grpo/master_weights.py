"""Float32 master weights for a model that computes in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cua_agent.models.policy import PolicyModel


class MasterWeights:
    """The float32 parameters that an optimiser of plain torch steps on.

    A trained parameter that the model holds in float32 is its own master. One in bfloat16 gets a master beside it: a
    step of 1e-6 on a weight of 0.1 is lost in bfloat16's eight bits, and so are small terms of a sum of gradients
    (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.1). Gradients move to the masters
    after every backward pass and add up there.
    """

    def __init__(self, policy: PolicyModel) -> None:
        self._policy = policy
        trained = dict(policy.trainable_parameters())
        self._rounded = {name: parameter for name, parameter in trained.items() if parameter.dtype != torch.float32}
        self.parameters = {
            name: _master_of(parameter) if name in self._rounded else parameter for name, parameter in trained.items()
        }

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, whose next forward pass sees the step."""
        if self._rounded:
            torch._foreach_copy_(list(self._rounded.values()), [self.parameters[name] for name in self._rounded])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model holds the masters themselves: what is saved and loaded is exact."""
        with self._policy.holding({name: self.parameters[name].detach() for name in self._rounded}):
            yield
        self.publish()


def _master_of(parameter: nn.Parameter) -> nn.Parameter:
    """A float32 copy, which takes the gradients of `parameter`."""
    master = nn.Parameter(parameter.detach().float())

    def move_gradient(held: Tensor) -> None:
        assert held.grad is not None
        gradient, held.grad = held.grad.float(), None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(move_gradient)  # type: ignore[no-untyped-call]
    return master
