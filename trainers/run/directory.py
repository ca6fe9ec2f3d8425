"""The directory of one run: never shared with an earlier run, and holding how it was made, without secrets."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trainers.config import ConfigError, TrainConfig
from trainers.config.masking import mask_secrets
from trainers.config.validation import AUTO

_PACKAGES = ("torch", "transformers", "peft", "hydra-core", "numpy", "pillow", "playwright", "areal")


def create_run_directory(
    config: TrainConfig,
    now: datetime | None = None,
    *,
    presets: Mapping[str, str] | None = None,
    resumed: Mapping[str, object] | None = None,
) -> Path:
    """Make a new directory for a run and write `config.yaml` and `run.json` into it; these hold the `presets` by config
    group, and where a `resumed` run began.

    Its name is `run_name`, or time, backend, experiment and seed; a number is appended when that exists already.
    Raises `ConfigError` when the directory cannot be made.
    """
    now = now or datetime.now()
    name = config.run_name or f"{now:%Y%m%d-%H%M%S}-{config.backend}-{config.experiment}-seed{config.seed}"
    directory = _make_new(Path(config.output_dir).expanduser(), name)
    about = {
        "started": now.isoformat(),
        "resumed_from": config.resume,
        **(resumed or {}),
        "presets": dict(presets or {}),
        **environment_information(),
    }
    masked_about = mask_secrets(about, os.environ)
    try:
        (directory / "config.yaml").write_text(to_yaml(masked_config(config)), encoding="utf-8")
        (directory / "run.json").write_text(json.dumps(masked_about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise ConfigError(f"output_dir={config.output_dir}: cannot write to {directory}: {error.strerror}") from None
    return directory


def named_after(config: TrainConfig, directory: Path) -> TrainConfig:
    """`config` with the run directory's name: what the run has on servers it shares (boxes, adapters) carries it. A
    world is told in its option `run`, where that is not set."""
    args = config.env.args
    label = {"run": directory.name} if "run" in args and args["run"] is None else {}
    return replace(config, run_name=directory.name, env=replace(config.env, args={**args, **label}))


def masked_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration as a plain tree without secrets."""
    tree: dict[str, Any] = mask_secrets(asdict(config), os.environ)
    return tree


def to_yaml(tree: Mapping[str, Any]) -> str:
    """`tree` as YAML, in its own order."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def path_to_type(path: Path) -> str:
    """`path` as a person in the present directory would type it, such that it means this path."""
    text = str(display_path(path))
    return str(path.absolute()) if text.startswith("~") or text == AUTO else text


def display_path(path: Path) -> Path:
    """`path` as seen from the present directory."""
    absolute, here = path.absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path


def environment_information() -> dict[str, Any]:
    """Python, machine, package versions (None when not installed) and the git commit of this checkout."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": sys.argv,
    }


def _make_new(parent: Path, name: str) -> Path:
    number = 1
    while True:
        directory = parent / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if not directory.is_dir():
                raise ConfigError(f"output_dir={parent}: {directory} is in the way; allowed: a directory") from None
            number += 1
        except OSError as error:
            raise ConfigError(f"output_dir={parent}: cannot make {directory}: {error.strerror}") from None
        else:
            return directory


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
