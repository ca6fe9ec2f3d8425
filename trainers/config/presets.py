"""Where presets come from: our `conf/`, installed packages, and directories that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainers.config.validation import ConfigError, shown

GROUPS = ("backend", "scheduler", "env", "model", "loader", "inference", "experiment")
ENTRY_POINTS = "cua_grpo.presets"
"""Entry points of this group name packages whose folder holds presets."""
OPTION = "--config-dir"
_WIDTH = 120


@dataclass(frozen=True)
class Presets:
    """Presets in several folders, ours first; a preset is a file `<group>/<name>.yaml`."""

    folders: tuple[Path, ...]

    def choices(self, group: str) -> list[str]:
        """The presets of a config group."""
        return sorted({file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")})

    def read(self, group: str, name: str) -> dict[str, Any] | None:
        """What a preset says, references to other keys as they stand; None when there is none of that name."""
        from omegaconf import OmegaConf

        for folder in self.folders:
            if (file := folder / group / f"{name}.yaml").is_file():
                content: Any = OmegaConf.to_container(OmegaConf.load(file))
                return dict(content)
        return None

    @property
    def search_path(self) -> list[str]:
        """Hydra's names of all folders but the first."""
        return [f"file://{folder}" for folder in self.folders[1:]]


def presets_in(own: Path, directories: Sequence[str] = ()) -> Presets:
    """Our presets, which lie in `own`, those of installed packages, and those of `directories`.

    Raises `ConfigError` for a directory that holds none, or one of a name that is taken.
    """
    presets = Presets((own, *_installed()))
    for directory in directories:
        folder = Path(directory).expanduser().absolute()
        said = f"{OPTION}={shown(directory, _WIDTH)}"
        if not folder.is_dir():
            raise ConfigError(f"{said}: no such directory")
        added = Presets((folder,))
        if not any(added.choices(group) for group in GROUPS):
            raise ConfigError(f"{said}: no presets in it; allowed: files such as {GROUPS[-1]}/mine.yaml")
        for group in GROUPS:
            if taken := set(added.choices(group)) & set(presets.choices(group)):
                raise ConfigError(f"{said}: {group}/{min(taken)}.yaml: there is a preset of that name already")
        presets = Presets((*presets.folders, folder))
    return presets


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The directories that `--config-dir=<directory>` names, and the other arguments."""
    own = [argument for argument in arguments if argument.startswith(f"{OPTION}=")]
    return [argument.partition("=")[2] for argument in own], [each for each in arguments if each not in own]


def joined_options(arguments: Sequence[str]) -> list[str]:
    """`arguments` with `--config-dir <directory>` as one word. Raises `ConfigError` where the second is missing."""
    words, joined = iter(arguments), []
    for word in words:
        if word == OPTION:
            if (directory := next(words, None)) is None:
                raise ConfigError(f"{OPTION}: a directory is wanted")
            word = f"{OPTION}={directory}"
        joined.append(word)
    return joined


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of packages; a package is not imported for it."""
    folders = []
    for point in entry_points(group=ENTRY_POINTS):
        spec = find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"entry point {point.name} of {ENTRY_POINTS}: {point.value} is no package")
        folders.append(Path(next(iter(spec.submodule_search_locations))))
    return tuple(folders)
