"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

LANGUAGE_MODEL_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA adapter; `target_modules` is a regular expression that must match a module's whole name."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = LANGUAGE_MODEL_LINEARS
    seed: int = 0


def attach_lora(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Wrap `model` in a `PeftModel` with a fresh adapter; everything else is frozen.

    B starts at zero, so that the adapted model equals the base model; A is drawn from `spec.seed` without touching
    the global random state. Raises `ValueError` when `target_modules` matches nothing.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=spec.target_modules, bias="none"
    )
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        try:
            adapted: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            raise ValueError(f"lora.target_modules={spec.target_modules!r} cannot be adapted: {error}") from None
    return adapted


def adapter_base(directory: Path) -> str | None:
    """The base model that the adapter saved in `directory` belongs to; None when there is no adapter."""
    config = directory / "adapter_config.json"
    if not config.is_file():
        return None
    base: str = json.loads(config.read_text())["base_model_name_or_path"]
    return base


def load_adapter(model: nn.Module, directory: Path) -> nn.Module:
    """Wrap `model` in a `PeftModel` with the trainable adapter saved in `directory`; everything else is frozen."""
    from peft import PeftModel

    adapted: nn.Module = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
    return adapted
