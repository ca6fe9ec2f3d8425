"""What a run left of its configuration, for those that go on with it: `config.yaml`, and its presets in `run.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainers.config.former_keys import renamed
from trainers.config.masking import MASK, mask_secrets
from trainers.config.run import TrainConfig
from trainers.config.validation import ConfigError, fields_of, leaves, shown

CONFIG, ABOUT = "config.yaml", "run.json"
NOT_INHERITED = ("resume", "run_name", "output_dir")
"""Keys of the directory that a run gets, not of what it does."""

ARGS = "env.args."
"""What the keys of a world's options begin with."""

_KEYS = tuple(name for name, kind in fields_of(TrainConfig) if not is_dataclass(kind))
_ABSENT = object()
_PATH_WIDTH = 120
_NAMED_BY = {
    **{group: f"{group}.name" for group in ("scheduler", "env", "loader", "inference")},
    "model": "model.path",
}
"""By config group: the key that tells which preset a run without a list of its presets was made of."""


@dataclass(frozen=True)
class SavedRun:
    """A run directory's configuration: `settings` by dotted key, those that it lacks with their defaults; `presets` by
    config group; `unknown` are the keys that nobody knows any more."""

    directory: Path
    settings: Mapping[str, Any]
    presets: Mapping[str, str]
    unknown: Mapping[str, Any]


def run_directory_of(path: Path) -> Path | None:
    """The run directory that `path` is, or that the checkpoint `path` is in; None when there is none."""
    for directory in (path, path.absolute().parent.parent):
        if (directory / CONFIG).is_file():
            return directory
    return None


def read_saved(directory: Path) -> SavedRun:
    """The configuration that a run directory holds. Raises `ConfigError`."""
    tree = renamed(read_yaml(directory / CONFIG))
    settings = {**default_settings(), **by_key(tree)}
    unknown = {name: value for name, value in leaves(tree) if not _belongs_to_a_key(name)}
    return SavedRun(directory, settings, _presets(directory, settings), unknown)


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Every key of `config` by dotted name, as `config.yaml` would hold it: plain data without secrets."""
    return by_key(mask_secrets(asdict(config), os.environ))


def practical_keys(config: TrainConfig) -> set[str]:
    """The keys of the world that change nothing of what is played in it."""
    return {"env.price_per_box_hour"} | {f"{ARGS}{name}" for name in getattr(config.env.world, "PRACTICAL", ())}


@cache
def default_settings() -> Mapping[str, Any]:
    """Every key of a configuration with its default, but for the options of worlds, which are the world's own."""
    return {key: value for key, value in by_key(asdict(TrainConfig())).items() if not key.startswith(ARGS)}


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The keys in which `config` is not what was saved, a line each: `key: old -> new`."""
    return [
        f"{key}: {shown(saved[key])} -> {shown(value)}"
        for key, value in settings_of(config).items()
        if key not in NOT_INHERITED and key in saved and saved[key] != value
    ]


def without_secrets(saved: SavedRun, typed: Sequence[str]) -> dict[str, Any]:
    """The saved settings, with null for those that read `***`: they are `typed` anew, or null by default and then come
    from the environment. Raises `ConfigError` for any other."""
    usable = dict(saved.settings)
    for key, value in saved.settings.items():
        if MASK not in json.dumps(value):
            continue
        usable[key] = None
        given = any(key == name or key.startswith(f"{name}.") for name in typed)
        if not given and (value != MASK or default_settings().get(key) is not None):
            raise ConfigError(
                f"{key}={shown(value)}: {shown(str(saved.directory / CONFIG), _PATH_WIDTH)} does not hold the secret "
                f"in it; give it again: {key}=..."
            )
    return usable


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of dotted keys."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return tree


def by_key(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `tree` by the dotted name of their key, as YAML would give them back, those of a world's options
    each by its own; what is no key is left out."""
    plain = json.loads(json.dumps(tree))  # lists for tuples
    found: dict[str, Any] = {}
    for name in _KEYS:
        value: Any = plain
        for part in name.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if isinstance(value, dict):
            found |= leaves(value, f"{name}.")
        elif value is not _ABSENT:
            found[name] = value
    return found


def _belongs_to_a_key(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: count + 1]) in _KEYS for count in range(len(parts)))


def _presets(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    presets = read_about(directory).get("presets")
    if isinstance(presets, dict) and presets:
        return {str(group): name for group, name in presets.items() if isinstance(name, str)}
    return {group: str(settings[_NAMED_BY.get(group, group)]) for group in ("backend", *_NAMED_BY, "experiment")}


def read_about(directory: Path) -> dict[str, Any]:
    """What `run.json` tells of a run; nothing where it cannot be read."""
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def read_yaml(file: Path) -> dict[str, Any]:
    """The tree of a file of YAML, references in it left as they are. Raises `ConfigError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        tree = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(str(file), _PATH_WIDTH)} cannot be read: {shown(str(error), 100)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{shown(str(file), _PATH_WIDTH)} holds no keys")
    return {str(key): value for key, value in tree.items()}
