"""Checkpoints of home-grown trainers: a PEFT adapter with `training_state.json` beside it.

    adapter_model.safetensors, adapter_config.json      the adapter
    training_state.json                                 {"step": 120, "best_accuracy": 0.8, "best_step": 100, ...}

Weights, step and best result are taken; optimiser, schedule and everything else begin anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.config import TrainConfig
from trainers.protocol import TrainerState
from trainers.run.checkpoint_files import MANIFEST, CheckpointError

OLD_STATE = "training_state.json"
_STEP = ("step", "global_step", "current_step")
_BEST = ("best_success", "best_success_rate", "best_accuracy", "best_eval_accuracy", "best_eval_success_rate")
_BEST_STEP = ("best_step", "best_global_step")


def is_old(directory: Path) -> bool:
    """Whether a home-grown trainer left its checkpoint in `directory`."""
    return (directory / OLD_STATE).is_file() and not (directory / MANIFEST).exists()


def read_old_state(directory: Path) -> TrainerState:
    """Step and best result of the checkpoint, whose adapter can be read. Raises `CheckpointError`."""
    values = _values(directory)
    step = _found(directory, values, _STEP)
    best, best_step = _found(directory, values, _BEST), _found(directory, values, _BEST_STEP)
    if step is None:
        raise CheckpointError(f"checkpoint {directory}: {OLD_STATE} has no step; allowed: one of {', '.join(_STEP)}")
    for name, value in (("step", step), ("best step", best_step)):
        if value is not None and (value != int(value) or value < 0):
            raise CheckpointError(f"checkpoint {directory}: {OLD_STATE}: {name} {value}; allowed: an integer, >= 0")
    if best is not None and not 0 <= best <= 1:
        raise CheckpointError(f"checkpoint {directory}: {OLD_STATE}: best result {best}; allowed: a share, 0 to 1")
    _check_adapter(directory)
    known_at = int(step if best_step is None else best_step) if best is not None else None
    return TrainerState(step=int(step), policy_version=int(step), best_success=best, best_step=known_at)


def with_adapter_of(config: TrainConfig, directory: Path) -> tuple[TrainConfig, list[str]]:
    """`config` with the adapter's rank, scale and modules; what that changes, a line each."""
    from cua_agent.models.lora import saved_spec

    spec = saved_spec(directory)
    lora = replace(config.lora, enabled=True, r=spec.r, alpha=spec.alpha, target_modules=spec.target_modules)
    keys = ("enabled", "r", "alpha", "target_modules")
    said = [
        f"lora.{key}: {getattr(config.lora, key)} -> {getattr(lora, key)}"
        for key in keys
        if getattr(config.lora, key) != getattr(lora, key)
    ]
    return replace(config, lora=lora), said


def _values(directory: Path) -> Mapping[str, Any]:
    try:
        values = json.loads((directory / OLD_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {directory}: {OLD_STATE} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"checkpoint {directory}: {OLD_STATE} holds no keys")
    return values


def _found(directory: Path, values: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """The number under the first of `names` that is there, and not null."""
    for name in names:
        value = values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            shown = str(value)[:40]
            raise CheckpointError(f"checkpoint {directory}: {OLD_STATE}: {name}={shown}; allowed: a number")
        return value
    return None


def _check_adapter(directory: Path) -> None:
    from safetensors import SafetensorError, safe_open

    from cua_agent.models.lora import ADAPTER_WEIGHTS, saved_spec

    for name in (ADAPTER_WEIGHTS, "adapter_config.json"):
        if not (directory / name).is_file():
            raise CheckpointError(f"checkpoint {directory} is incomplete: {name} is missing")
    try:
        saved_spec(directory)
        with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
            file.keys()
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {directory} cannot be read: {next(iter(str(error).splitlines()), '')}"
        ) from error
