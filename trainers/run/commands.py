"""Our commands, as a program starts them and as a person types them: scripts of a checkout, or an installed package."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cua_agent.installation import CHECKOUT, ROOT
from trainers.config.masking import mask_secrets
from trainers.config.overrides import typed_text
from trainers.run.directory import path_to_type

TRAIN = (sys.executable, "-u", *([str(ROOT / "train.py")] if CHECKOUT else ["-P", "-m", "trainers.command"]))
"""The beginning of a command that trains; keys follow."""

_INSTALLED = {
    "train": "cua-train",
    "compare": "cua-compare",
    "cua_agent": "cua-agent",
    "trainers.watch": "cua-watch",
    "trainers.evaluate": "cua-evaluate",
    "trainers.clone": "cua-clone",
}
Command = Literal[
    "train", "compare", "cua_agent", "trainers.curves", "trainers.watch", "trainers.evaluate", "trainers.clone"
]


def typed(command: Command) -> list[str]:
    """The words that a person in the present directory begins `command` with: a script or a module."""
    if CHECKOUT:
        return ["python", *_script_or_module(command)]
    environment = Path(sys.executable).parent
    if command not in _INSTALLED:
        return [_as_typed(Path(sys.executable), "python"), "-m", command]
    return [_as_typed(environment / _INSTALLED[command], _INSTALLED[command])]


def resume_command(overrides: Sequence[str], directory: Path, **changes: object) -> str:
    """The command that goes on with the run in `directory` with `changes`. Of the `overrides` that the run was started
    with it repeats the references to secrets, because everything else is in the directory."""
    secrets = [override for override in overrides if "${" in override and _is_secret(override.partition("=")[0])]
    changed = [f"{key}={value}" for key, value in changes.items()]
    start = typed("train")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        script = _script_or_module("train") if CHECKOUT else ["-m", "trainers.command"]
        start = ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *script]
    return shlex.join([*start, typed_text("resume", path_to_type(directory)), *changed, *secrets])


def _script_or_module(command: Command) -> list[str]:
    script = ROOT / f"{command}.py"
    return [path_to_type(script)] if script.is_file() else ["-m", command]


def _as_typed(program: Path, name: str) -> str:
    """`name`, where that is this `program`; else its path."""
    found = shutil.which(name)
    return name if found is not None and Path(found) == program else path_to_type(program)


def _is_secret(key: str) -> bool:
    return bool(mask_secrets({key.rpartition(".")[2]: "text"}, {}) != {key.rpartition(".")[2]: "text"})
