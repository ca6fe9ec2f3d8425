"""The language model's layers through torch.compile, for training: fewer passes over memory, and fewer kernels.

What is compiled is a layer's own forward, for packed rows of any lengths. Sampling, whose shapes change with every
turn, stays as it is, and so does attention, which is a kernel of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cua_agent.models.architecture import language_model_of

_READ_BY_A_LAYER = ("attention_mask", "position_embeddings", "cu_seq_lens_q", "max_length_q")
"""Of everything that is handed down to the layers. What else there is would be looked at before every call."""

_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
"""By the forward that was compiled: once for all layers of a class, and of copies of a model."""


def allow_compiling() -> None:
    """Whatever this process was started with."""
    os.environ["TORCHDYNAMO_DISABLE"] = "0"


def compile_layers(model: Any) -> None:
    """Compile the decoder layers of `model` in place, for it and its copies. Compiling itself happens when packed rows
    come for the first time."""
    allow_compiling()
    for layer in language_model_of(model).layers:
        stock = type(layer).forward
        if stock not in _compiled:
            _compiled[stock] = torch.compile(stock, dynamic=True)
        layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, hidden_states: Tensor, **arguments: Any) -> Any:
    stock = type(layer).forward  # FSDP's class of the layer inherits it
    if "cu_seq_lens_q" not in arguments:
        return stock(layer, hidden_states, **arguments)
    return _compiled[stock](layer, hidden_states, **{name: arguments[name] for name in _READ_BY_A_LAYER})
