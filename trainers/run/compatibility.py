"""Whether a checkpoint and a configuration belong together; asked before anything heavy is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.config import ConfigError, TrainConfig
from trainers.run.checkpoint_files import BASE, CheckpointError

if TYPE_CHECKING:
    from cua_agent.models.lora import LoraSpec


def check_fits(checkpoint: Path, config: TrainConfig) -> None:
    """Raise `ConfigError`, naming both values, when `config` trains another kind of policy than the checkpoint holds:
    all weights or an adapter, another adapter, or another base model."""
    from cua_agent.models.errors import ModelError

    try:
        problem = next(_problems(checkpoint, config), None)
    except (CheckpointError, ModelError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if problem is not None:
        raise ConfigError(problem)


def adapter_differences(present: LoraSpec, saved: LoraSpec) -> Iterator[tuple[str, object, object]]:
    """Key, present and saved value of what makes an adapter another one. Its dropout may change."""
    for field in ("r", "alpha", "target_modules"):
        if getattr(present, field) != getattr(saved, field):
            yield f"lora.{field}", getattr(present, field), getattr(saved, field)


def saved_base(checkpoint: Path) -> tuple[str, str] | None:
    """Name and fingerprint of the base model that a checkpoint was trained on; None in one that does not tell. Raises
    `CheckpointError`."""
    if not (checkpoint / BASE).is_file():
        return None
    try:
        about = json.loads((checkpoint / BASE).read_text(encoding="utf-8"))
        return str(about["name"]), str(about["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint}: {BASE} cannot be read: {error!r}") from error


def _problems(checkpoint: Path, config: TrainConfig) -> Iterator[str]:
    from cua_agent.models.fingerprint import fingerprint
    from cua_agent.models.lora import LoraSpec, adapter_base, saved_spec
    from cua_agent.models.sources import model_source

    lora, started_from = config.lora, Path(config.model.path).expanduser()
    goes_on_with_adapter = adapter_base(started_from) is not None
    trains_adapter, holds_adapter = lora.enabled or goes_on_with_adapter, adapter_base(checkpoint) is not None
    if trains_adapter != holds_adapter:
        what = "a LoRA adapter" if holds_adapter else "full weights"
        allowed = str(holds_adapter).lower()
        yield f"lora.enabled={str(lora.enabled).lower()}: checkpoint {checkpoint} holds {what}; allowed: {allowed}"
    if trains_adapter and holds_adapter:
        own = LoraSpec(lora.r, lora.alpha, lora.dropout, lora.target_modules)
        present = saved_spec(started_from) if goes_on_with_adapter else own
        for key, value, trained in adapter_differences(present, saved_spec(checkpoint)):
            yield f"{key}={value}: checkpoint {checkpoint} was trained with {trained}; allowed: {trained}"
    location = model_source(config.model.path)
    base = saved_base(checkpoint) or _named_base(checkpoint)
    if base is not None and (here := fingerprint(location)) is not None and here != base[1]:
        yield (
            f"model.path={config.model.path}: another base model (fingerprint {here}) than checkpoint {checkpoint} was "
            f"trained on; allowed: {base[0]} (fingerprint {base[1]})"
        )


def _named_base(checkpoint: Path) -> tuple[str, str] | None:
    """Of a checkpoint without a fingerprint: that of the model its adapter names, while it is there."""
    from cua_agent.models.errors import ModelError
    from cua_agent.models.fingerprint import fingerprint
    from cua_agent.models.lora import adapter_base
    from cua_agent.models.sources import model_source

    name = adapter_base(checkpoint)
    try:
        found = fingerprint(model_source(name)) if name is not None else None
    except ModelError:
        found = None
    return (name, found) if name is not None and found is not None else None
