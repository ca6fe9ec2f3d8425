"""What can be wrong with the model that a user asks for; every message is one line that says what to do."""

from __future__ import annotations


class ModelError(ValueError):
    """The model cannot be loaded as asked for."""


class ModelNotFound(ModelError):  # noqa: N818 (a state of the world, not a fault of the program)
    """`model.path` leads to no model; the message names key, value and what is allowed."""

    def __init__(self, path: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"model.path={path!r}: {why}; allowed: 'tiny', 'smollm2', a local directory with config.json, or a hub id "
            "such as 'Qwen/Qwen3-VL-2B-Instruct'"
        )


class UnsupportedModel(ModelError):  # noqa: N818
    """`model.path` leads to a model that no policy can be made of."""


class PackageMissing(ModelError):  # noqa: N818
    """A package that an optional part needs is not installed."""


class DeviceMissing(ModelError):  # noqa: N818
    """`loader.device` names a device that this machine does not have."""
