"""What a model is made of, known before it has weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def empty_model(config: Any, **arguments: Any) -> Any:
    """The model of a transformers `config`, with eyes or without, on the meta device: its parameters have shapes and no
    memory. `arguments` are those of `from_config`."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config, **arguments)


def blocks_of(model: Any) -> list[nn.Module]:
    """The layers of `model` and of its vision tower."""
    return [module for module in model.modules() if type(module).__name__ in model._no_split_modules]


def ends_of(model: Any) -> list[nn.Module]:
    """What stands around the layers and is used on its own: the vision tower's remainder, and, where their weights are
    not one, the embedding and the head."""
    tower = getattr(model.model, "visual", None)
    ends: list[nn.Module] = [] if tower is None else [tower]
    if not model.config.tie_word_embeddings:
        ends += [model.get_input_embeddings(), model.get_output_embeddings()]
    return ends
