"""What a model is made of, known before it has weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def empty_model(config: Any, **arguments: Any) -> Any:
    """The model of a transformers `config`, with eyes or without, whose parameters are on the meta device: they have
    shapes and no memory. Buffers, which no checkpoint has, are there. `arguments` are those of `from_config`."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config, **arguments)
    model.tie_weights()  # what stood for one parameter in two places became two
    return model.eval()


def set_training(modules: Sequence[nn.Module], training: bool) -> None:
    """What `nn.Module.train(training)` does, for all `modules` of a model: it visits each through `__setattr__`, which
    takes 20 ms for the 2,700 of a model with an adapter, twice an update."""
    for module in modules:
        module.__dict__["training"] = training


def replace_parameters(model: nn.Module, make: Callable[[nn.Parameter], Tensor]) -> None:
    """Put `make(parameter)` in place of every parameter; tied ones stay tied, frozen ones frozen."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                made[parameter] = nn.Parameter(make(parameter).detach(), parameter.requires_grad)
            module._parameters[name] = made[parameter]


def placeholder(parameter: Tensor) -> Tensor:
    """Of the same shape and dtype, on the CPU, in the memory of one element: for code that asks where weights are."""
    return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)


def blocks_of(model: Any) -> list[nn.Module]:
    """The layers of `model` and of its vision tower."""
    return [module for module in model.modules() if type(module).__name__ in model._no_split_modules]


def language_model_of(model: Any) -> Any:
    """Of a model with eyes or without: what has `layers`, and a `config` that they share."""
    return getattr(model.model, "language_model", model.model)


def ends_of(model: Any) -> list[nn.Module]:
    """What stands around the layers and is used on its own: the vision tower's remainder, and, where their weights are
    not one, the embedding and the head."""
    tower = getattr(model.model, "visual", None)
    ends: list[nn.Module] = [] if tower is None else [tower]
    if not model.config.tie_word_embeddings:
        ends += [model.get_input_embeddings(), model.get_output_embeddings()]
    return ends
