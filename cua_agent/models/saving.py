"""What a directory of weights holds besides the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cua_agent.models.errors import UnsupportedModel
from cua_agent.models.policy import PolicyModel

_MESSAGE_WIDTH = 300


def save_description(directory: Path, policy: PolicyModel) -> None:
    """Write every file of a policy's directory except its weights.

    Raises `UnsupportedModel` naming the part that its own library refuses to save, `OSError` when the disk does.
    """
    model: Any = policy.model
    parts: dict[str, Any] = (
        {"adapter_config.json": model.active_peft_config} if policy.has_adapter else {"config.json": model.config}
    )
    if not policy.has_adapter and model.can_generate():
        parts["generation_config.json"] = model.generation_config
    parts["tokenizer"] = policy.tokenizer
    if policy.reads_images:
        parts["image processor"] = policy.image_processor
    for name, part in parts.items():
        try:
            part.save_pretrained(str(directory))
        except OSError:
            raise
        except Exception as error:  # each library has errors of its own
            message = " ".join(str(error).split())[:_MESSAGE_WIDTH]
            raise UnsupportedModel(
                f"model.path={model.name_or_path!r}: its {name} cannot be saved, so nothing trained could be: "
                f"{type(error).__name__}: {message}"
            ) from error
