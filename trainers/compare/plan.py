"""Which runs a comparison wants, and which of them are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.compare.options import CompareConfig
from trainers.compare.runs import read_config
from trainers.compare.settings import fingerprint
from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.compose import load_config
from trainers.config.saved import by_key, default_settings
from trainers.config.validation import leaves, shown
from trainers.run.directory import masked_config
from trainers.run.lineage import lineage_of

Identity = tuple[str, int]
"""Fingerprint of a configuration, and the seed."""


@dataclass(frozen=True)
class Planned:
    """A run that a comparison wants: its name for people, and what `train.py` is called with."""

    label: str
    overrides: tuple[str, ...]
    config: TrainConfig

    @property
    def identity(self) -> Identity:
        """Runs with the same identity need not be trained twice."""
        return _identity(self.config)


@dataclass(frozen=True)
class Found:
    """The newest run directories of one identity: one that finished, one that was interrupted and can go on."""

    finished: Path | None = None
    interrupted: Path | None = None


def plan(options: CompareConfig, overrides: Sequence[str]) -> list[Planned]:
    """The runs of `backends=`, the backends of a seed after each other, so that all advance alike on a machine whose
    speed changes. Raises `ConfigError` before anything runs."""
    return [_planned(variant, seed, overrides) for seed in options.seeds for variant in _variants(options)]


def find(planned: Sequence[Planned]) -> list[Found]:
    """What there is of each planned run in its `output_dir`."""
    by_folder: dict[str, dict[Identity, Found]] = {}
    found = []
    for run in planned:
        folder = run.config.output_dir
        if folder not in by_folder:
            by_folder[folder] = _index(Path(folder).expanduser())
        found.append(by_folder[folder].get(run.identity, Found()))
    return found


def report_directory(options: CompareConfig, planned: Sequence[Planned], runs: Sequence[Path]) -> Path:
    """`out=`, or a name of its own for every choice of runs, so that the same command renews its own report."""
    if options.out:
        return Path(options.out).expanduser()
    if planned:
        told = [*options.backends, *(f"phase{phase}" for phase in options.phase)]
        return (
            Path(planned[0].config.output_dir) / f"compare-{'-'.join(told)}-{_digest(run.identity for run in planned)}"
        )
    return Path("outputs") / f"compare-{_digest(sorted(str(run.resolve()) for run in runs))}"


def named_runs(patterns: Sequence[str]) -> list[Path]:
    """The directories of `runs=`, each once; a `*` stands for any text. Raises `ConfigError` when nothing matches."""
    directories: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = sorted(_glob(path)) if "*" in pattern else [path]
        if not matches:
            raise ConfigError(f"runs={shown(pattern, 120)}: no run directory matches")
        for match in matches:
            directories.setdefault(match.resolve(), match)
    return list(directories.values())


def without_beginnings(directories: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The runs but for those that another one of the same settings goes on with: they are a part of that one. And a
    line for each that is left out."""
    continued = {part.directory.resolve(): run for run in directories for part in lineage_of(run).parts[:-1]}
    kept, notes = [], []
    for directory in directories:
        later = continued.get(directory.resolve())
        if later is not None and _practice(directory) == _practice(later):
            notes.append(f"{directory.name} is the beginning of {later.name}, not a run of its own")
        else:
            kept.append(directory)
    return kept, notes


def _practice(directory: Path) -> str:
    """What a run does, however long it does it."""
    settings = {**default_settings(), **by_key(read_config(directory))}
    return fingerprint({key: value for key, value in settings.items() if key not in ("max_steps", "max_minutes")})


def _glob(path: Path) -> Iterable[Path]:
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor) if path.is_absolute() else path)
    return (match for match in anchor.glob(pattern) if (match / "config.yaml").is_file())


def _variants(options: CompareConfig) -> list[tuple[str, ...]]:
    variants = []
    for backend in dict.fromkeys(options.backends):
        phases = dict.fromkeys(options.phase) if backend == "areal" and options.phase else (None,)
        variants += [(f"backend={backend}", *(() if phase is None else (f"phase={phase}",))) for phase in phases]
    return variants


def _planned(variant: tuple[str, ...], seed: int, overrides: Sequence[str]) -> Planned:
    label = " ".join(part.removeprefix("backend=").replace("=", " ") for part in variant)
    config = load_config([*overrides, *variant, f"seed={seed}"])
    name = f"{label.replace(' ', '-')}-{config.experiment}-seed{seed}"
    return Planned(f"{label} seed {seed}", (*overrides, *variant, f"seed={seed}", f"run_name={name}"), config)


def _index(folder: Path) -> dict[Identity, Found]:
    """Every run directory in `folder` that today's schema can read, by identity."""
    index: dict[Identity, Found] = {}
    for file in sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime):
        directory = file.parent
        try:
            tree: dict[str, Any] = read_config(directory) | {"resume": None}
            identity = _identity(from_mapping(tree))
        except ConfigError:
            continue
        found = index.get(identity, Found())
        if (directory / "summary.json").is_file():
            index[identity] = replace(found, finished=directory)
        elif (directory / "error.log").exists():  # whatever broke it, going on from there may break again
            index[identity] = replace(found, interrupted=None)
        elif any((directory / "checkpoints").glob("*")):
            index[identity] = replace(found, interrupted=directory)
    return index


def _identity(config: TrainConfig) -> Identity:
    return fingerprint(dict(leaves(masked_config(config)))), config.seed


def _digest(parts: Iterable[object]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:6]
