"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cua_agent.error_text import first_line
from cua_agent.models.architecture import empty_model
from cua_agent.models.errors import UnsupportedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LANGUAGE_MODEL_LINEARS = r".*\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The language model's linear layers, with or without a vision tower beside it (whose layers are `blocks`)."""


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA adapter; `target_modules` is a regular expression that must match a module's whole name."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = LANGUAGE_MODEL_LINEARS
    seed: int = 0


def attach_lora(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Wrap `model` in a `PeftModel` with a fresh adapter in the dtype of what it adapts; everything else is frozen.

    B starts at zero, so that the adapted model equals the base model; A is drawn from `spec.seed` without touching
    the global random state. Raises `ValueError` when `target_modules` matches nothing.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=spec.target_modules, bias="none"
    )
    with torch.random.fork_rng(cards_of(model)), tied_embeddings_expected():
        torch.manual_seed(spec.seed)
        try:
            adapted: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ValueError(f"lora.target_modules={spec.target_modules!r} cannot be adapted: {error}") from None
    return adapted


def cards_of(model: nn.Module) -> list[int]:
    """Numbers of the GPUs that hold parameters. Asking others for their random state would begin to use them."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def tied_embeddings_expected() -> Iterator[None]:
    """Without peft's page of advice about an adapter on tied embeddings, which `export` unties."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")
        yield


def matching_modules(location: str, pattern: str) -> list[str]:
    """The modules of the model at `location` (a directory or hub id) whose whole names match the regular expression
    `pattern`; no weights are loaded."""
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(location))
    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


def adapter_base(directory: Path) -> str | None:
    """The base model that the adapter saved in `directory` belongs to; None when there is no adapter.

    Raises `UnsupportedModel` when its `adapter_config.json` does not say.
    """
    config = directory / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        about = json.loads(config.read_text())
        base = about["base_model_name_or_path"]
        if not all(isinstance(about.get(key, 1), int | float) for key in ("r", "lora_alpha", "lora_dropout")):
            raise ValueError("r, lora_alpha and lora_dropout must be numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{config} cannot be read: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(base, str) or not base:
        raise UnsupportedModel(f"{config}: base_model_name_or_path={base!r}; allowed: the adapter's base model")
    return base


def saved_spec(directory: Path) -> LoraSpec:
    """What the adapter saved in `directory` is like. Raises `ValueError` when it is no plain LoRA adapter."""
    try:
        return _spec(json.loads((directory / "adapter_config.json").read_text()), str(directory))
    except (KeyError, TypeError, AttributeError, re.error) as error:
        raise ValueError(f"{directory / 'adapter_config.json'} cannot be read: {error!r}") from error


def active_spec(model: Any) -> LoraSpec:
    """What the adapter of a `PeftModel` is like. Raises `ValueError` when it is no plain LoRA adapter."""
    return _spec(model.active_peft_config.to_dict(), "the model")


def _spec(config: Mapping[str, Any], place: str) -> LoraSpec:
    special = ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
    used = [key for key in special if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or used:
        raise ValueError(f"{place} holds no plain LoRA adapter ({', '.join(used) or config.get('peft_type')})")
    targets = config["target_modules"]
    if not isinstance(targets, str):
        targets = rf"(.*\.)?({'|'.join(map(re.escape, sorted(targets)))})"
    return LoraSpec(config["r"], config["lora_alpha"], config["lora_dropout"], targets)


def load_adapter_weights(model: nn.Module, directory: Path) -> None:
    """Overwrite the adapter of a `PeftModel` with the one saved in `directory`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(directory / ADAPTER_WEIGHTS))


def load_adapter(model: nn.Module, directory: Path, base: str) -> nn.Module:
    """Wrap `model` in a `PeftModel` with the trainable adapter saved in `directory`; everything else is frozen. Saved
    again, the adapter names `base` as its base model."""
    from peft import PeftModel

    with tied_embeddings_expected():
        adapted = PeftModel.from_pretrained(model, str(directory), is_trainable=True, autocast_adapter_dtype=False)
    adapted.active_peft_config.base_model_name_or_path = base
    whole: nn.Module = adapted
    return whole
