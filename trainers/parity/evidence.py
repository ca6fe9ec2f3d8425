"""What one side came to on one case: files that a process leaves for another to compare.

rows.safetensors        <i>/<what> of row i as the loss sees it (see `trainers.parity.rows`)
gradients.safetensors   by parameter name
weights.safetensors     by parameter name, after all updates
moments.safetensors     <parameter name>/<what>: the optimiser's state after all updates
figures.json            everything else
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cua_agent.error_text import first_line

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]

Rows = list[dict[str, list[int]]]
"""What an episode says: sampled tokens and their versions, a mapping a row."""

_TENSORS = ("rows", "gradients", "weights", "moments")


@dataclass(frozen=True)
class Figures:
    """`settings` of the optimiser before and after the updates; `loss` of the first batch; `scale`, what a relative
    error of it is relative to (see `loss_scale`); `metrics`: what is reported of it besides; `updates`: what the
    updates report, and the counters after them; `moved`: how far they took the weights, relative to their size;
    `error`: what broke the replay off."""

    loss: float = float("nan")
    scale: float = float("nan")
    moved: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What one side computed in one case, kept as files."""

    figures: Figures = Figures()
    rows: Arrays = field(default_factory=dict, repr=False)
    gradients: Arrays = field(default_factory=dict, repr=False)
    weights: Arrays = field(default_factory=dict, repr=False)
    moments: Arrays = field(default_factory=dict, repr=False)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name in _TENSORS:
            arrays = {key: np.ascontiguousarray(value) for key, value in getattr(self, name).items()}
            save_file(arrays, directory / f"{name}.safetensors")
        (directory / "figures.json").write_text(json.dumps(asdict(self.figures), indent=1))


def load_evidence(directory: Path) -> Evidence:
    """Read what `Evidence.save` wrote; a side that left nothing died before it could. What is damaged is its error."""
    file = directory / "figures.json"
    if not file.is_file():
        return Evidence(Figures(error="the process ended without a result"))
    try:
        tensors = {name: _read(directory / f"{name}.safetensors", load_file) for name in _TENSORS}
        return Evidence(_read(file, lambda file: Figures(**json.loads(file.read_text()))), **tensors)
    except _DamagedError as error:
        return Evidence(Figures(error=str(error)))


@dataclass(frozen=True)
class Episodes:
    """Greedy episodes by id (those that were played twice under several names), and what each training step reported,
    times left out; or why there are none."""

    rows: Mapping[str, Rows] = field(default_factory=dict, repr=False)
    steps: Sequence[Mapping[str, float | None]] = field(default_factory=list, repr=False)
    error: str | None = None

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "episodes.json").write_text(json.dumps(asdict(self)))


def load_episodes(directory: Path) -> Episodes:
    """As `load_evidence`."""
    file = directory / "episodes.json"
    if not file.is_file():
        return Episodes(error="the process ended without a result")
    try:
        return _read(file, lambda file: Episodes(**json.loads(file.read_text())))
    except _DamagedError as error:
        return Episodes(error=str(error))


class _DamagedError(ValueError):
    """A file of evidence that cannot be read; one line that names it."""


def _read(file: Path, how: Callable[[Path], T]) -> T:
    try:
        return how(file)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise _DamagedError(f"{file} cannot be read: {first_line(error)}") from error
