"""A run as a comparison sees it: read from its directory, whatever state that is in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainers.config import ConfigError
from trainers.config.former_keys import renamed
from trainers.config.saved import default_settings
from trainers.config.validation import leaves, shown
from trainers.run.files import last_error, read_rows
from trainers.run.lineage import is_step, joined, lineage_of

Axis = Literal["minutes", "steps", "episodes", "box_minutes"]
Row = Mapping[str, Any]

SYNCHRONOUS = "legacy"
"""The backend whose rollouts and updates take turns; on any other, rollouts go on all the time."""

_PATH_WIDTH = 120
_NAN = float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Held-out success after `step` training steps; `reward` is NaN where it was not written,
    `by_category` holds (successes, episodes), those of whole worlds included."""

    split: str
    step: int
    episodes: int
    success: float
    reward: float
    by_category: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run. `settings` are the dotted keys of its `config.yaml`, and the defaults of those that it lacks; `rows` and
    `evaluations` are in order of steps and begin with those of the run that it was resumed from; `summary` is None
    unless it finished."""

    name: str
    directory: Path
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    summary: Mapping[str, Any] | None = None
    error: str | None = None
    commit: str | None = None
    machine: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """The run's backend."""
        return str(self.settings["backend"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings["seed"])

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.summary is not None

    @cached_property
    def steps(self) -> list[int]:
        """The training steps that have a row."""
        return [row["step"] for row in self.rows]

    def column(self, key: str) -> NDArray[np.float64]:
        """A metric by row; NaN where it is missing, null or no finite number."""
        return np.array([number(row, key) for row in self.rows], np.float64)

    def logprob_gaps(self, *, stale: bool) -> list[float]:
        """The known log-prob gaps of the steps that trained on stale tokens, or of those that did not.

        Only without staleness do rollout and training log-probs belong to the same weights, so that a gap is a fault;
        with it the policy's own drift is in the gap.
        """
        steps = zip(self.column("staleness_max"), self.column("logprob_gap"), strict=True)
        return [float(gap) for staleness, gap in steps if (staleness > 0) == stale and math.isfinite(gap)]

    def environments_in_use(self) -> NDArray[np.float64]:
        """Environments lent to an episode, by row, as a share of the pool over the whole of a step.

        The synchronous backend measures its use over the rollouts only, which are a part of the step.
        """
        use = self.column("env_utilisation")
        if self.backend != SYNCHRONOUS:
            return use
        with np.errstate(divide="ignore", invalid="ignore"):
            return use * self.column("rollout_s") / self.column("step_s")

    def axis(self, name: Axis) -> dict[int, float]:
        """Step -> what had been spent when it ended, from the step before the first row on.

        All but steps are sums over the rows. They are unknown (NaN) after a row that lacks them, and in a run whose
        first steps are not at hand.
        """
        start = self.steps[0] - 1 if self.rows else 0
        steps = [start, *self.steps]
        if name == "steps":
            return {step: float(step) for step in steps}
        spent = self.column("step_s") / 60 if name == "minutes" else self.column(name)
        origin = 0.0 if start == 0 else _NAN
        return dict(zip(steps, accumulate(spent.tolist(), initial=origin), strict=True))

    def evaluated(self, split: str) -> list[Evaluation]:
        """The evaluations of a split, oldest first."""
        return [evaluation for evaluation in self.evaluations if evaluation.split == split]


def number(row: Row, key: str) -> float:
    """A finite number of a row, NaN for anything else."""
    value = row.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else _NAN  # type: ignore[arg-type]


def load_run(directory: Path) -> Run:
    """Read a run directory. Raises `ConfigError`, one line that begins with `runs=`, when there is nothing to compare
    in it."""
    if not directory.is_dir():
        raise _broken(directory, "no such directory")
    settings = {**default_settings(), **dict(leaves(read_config(directory)))}
    about = _json_object(directory, "run.json") or {}
    lineage = lineage_of(directory)
    pieces = [(part, _training_rows(part.directory)) for part in lineage.parts]
    rows = joined(pieces, _step_of, _step_of)
    evaluated = [(part, _evaluations(part.directory)) for part in lineage.parts]
    evaluations = joined(evaluated, lambda e: e.step, lambda e: (e.split, e.step))
    if not rows and not evaluations:
        why = last_error(directory)
        raise _broken(directory, f"metrics.jsonl has no rows{f'; the run failed: {why}' if why else ''}")
    return Run(
        directory.name,
        directory,
        settings,
        tuple(rows),
        tuple(evaluations),
        _json_object(directory, "summary.json"),
        last_error(directory),
        about.get("git_commit"),
        f"{about['platform']}, {about.get('cpus')} CPUs" if about.get("platform") else None,
        lineage.notes,
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The tree of a run's `config.yaml`, with at least `backend` and an integer `seed`. Raises `ConfigError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    file = directory / "config.yaml"
    if not file.is_file():
        raise _broken(directory, "no config.yaml in it; allowed: a run directory of train.py")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise _broken(directory, f"config.yaml cannot be read: {shown(str(error), 100)}") from error
    if not isinstance(tree, dict):
        raise _broken(directory, "config.yaml holds no keys")
    for key, kind in (("backend", str), ("seed", int)):
        if not isinstance(tree.get(key), kind):
            raise _broken(directory, f"{key}={shown(tree.get(key))} in config.yaml; it must be {kind.__name__}")
    return renamed({str(key): value for key, value in tree.items()})


def _step_of(row: Row) -> int:
    return int(row["step"])


def _training_rows(directory: Path) -> list[Row]:
    by_step: dict[int, Row] = {}
    for line, row in enumerate(read_rows(directory / "metrics.jsonl"), start=1):
        if not isinstance(row, dict) or not is_step(row.get("step")):
            raise _broken(directory, f"line {line} of metrics.jsonl has no step")
        by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _evaluations(directory: Path) -> list[Evaluation]:
    """Those that measured something; one whose episodes were all lost did not."""
    found: dict[tuple[str, int], Evaluation] = {}
    for line, row in enumerate(read_rows(directory / "eval.jsonl"), start=1):
        if not isinstance(row, dict) or not is_step(row.get("step")) or not isinstance(row.get("split"), str):
            raise _broken(directory, f"line {line} of eval.jsonl has no step or no split")
        success, episodes = number(row, "success_rate"), number(row, "episodes")
        if math.isfinite(success) and episodes > 0:
            key = (row["split"], row["step"])
            reward = number(row, "reward_mean")
            found[key] = Evaluation(
                *key, int(episodes), success, reward, {**_counts(row, "by_category"), **_counts(row, "by_world")}
            )
    return sorted(found.values(), key=lambda evaluation: evaluation.step)


def _counts(row: Row, key: str) -> dict[str, tuple[int, int]]:
    """(successes, episodes) by name; none where the row does not say it in that form."""
    said = row.get(key)
    counts = said.items() if isinstance(said, dict) else ()
    return {
        str(name): (pair[0], pair[1])
        for name, pair in counts
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair) and pair[1] > 0
    }


def _json_object(directory: Path, name: str) -> dict[str, Any] | None:
    file = directory / name
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(directory, f"{name} is not JSON: {shown(str(error), 100)}") from error
    if not isinstance(content, dict):
        raise _broken(directory, f"{name} holds no keys")
    return content


def _broken(directory: Path, why: str) -> ConfigError:
    return ConfigError(f"runs={shown(str(directory), _PATH_WIDTH)}: {why}")
