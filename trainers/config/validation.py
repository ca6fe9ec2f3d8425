"""What can be told of a configuration's values by looking at this machine: paths that are there."""

from __future__ import annotations

import re
from pathlib import Path

from cua_agent.options import STRICT, ConfigError, build, check_keys, fields_of, leaves, shown

__all__ = [
    "AUTO",
    "BUILT_IN_MODELS",
    "STRICT",
    "ConfigError",
    "build",
    "check_keys",
    "check_model_path",
    "check_resume_path",
    "fields_of",
    "leaves",
    "shown",
]

AUTO = "auto"
"""`resume=auto`: the newest run that can be gone on with."""

BUILT_IN_MODELS = ("tiny", "smollm2")
_PATH_WIDTH = 120
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")


def check_model_path(path: str) -> None:
    """Raise `ConfigError` when `path` can only be a local directory and there is none."""
    if path not in BUILT_IN_MODELS and not _HUB_ID.fullmatch(path) and not _is_directory(path):
        raise ConfigError(
            f"model.path={shown(path, _PATH_WIDTH)}: no such directory; "
            f"allowed: {', '.join(BUILT_IN_MODELS)}, a model directory, or a hub id"
        )


def check_resume_path(path: str | None) -> None:
    """Raise `ConfigError` when there is nothing at `path` to resume from."""
    if path not in (None, AUTO) and not _is_directory(path):
        raise ConfigError(
            f"resume={shown(path, _PATH_WIDTH)}: no such directory; allowed: a checkpoint, a run directory, or {AUTO}"
        )


def _is_directory(path: str) -> bool:
    """Whether there is one at `path`; no path that a person could type is an error."""
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long, a home of nobody
        return False
