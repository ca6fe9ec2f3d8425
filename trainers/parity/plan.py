"""Everything that is replayed, laid out in one directory that every side reads.

plan.json                the pieces of work, and where each starts
pieces/<piece>/          config.yaml and trajectories/ of a piece
starts/<name>/           checkpoints
evidence/<side>/<piece>/ what each side came to
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.config import ConfigError, TrainConfig
from trainers.parity.cases import CASES, WEIGHTS, Case, Weights, drifted, replayable, with_keys
from trainers.parity.greedy import LIVE_CASES, LiveCase
from trainers.parity.recording import UPDATES, Recording, read_config, write_config
from trainers.parity.replay import SIDES, PartsFor, Side
from trainers.parity.rounding import TWINS
from trainers.parity.starts import make_start, rescored
from trainers.protocol import Batch
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.checkpoint import load_weights
from trainers.run.directory import display_path

DType = Literal["float32", "bfloat16"]
_NAMED: dict[str, Case | LiveCase] = {case.name: case for case in (*CASES, *LIVE_CASES)}
_LIVE_MOVED = 0.01


@dataclass(frozen=True)
class Plan:
    """`pieces`: from the name of each piece of work, "<weights>/<case>", to that of the checkpoint it starts at;
    `source`: what was recorded, in words; `dtype`: what it is replayed in."""

    directory: Path
    pieces: Mapping[str, str]
    source: str = ""
    dtype: DType = "float32"

    @property
    def sides(self) -> tuple[Side, ...]:
        """Who replays the plan."""
        return SIDES if self.dtype == "float32" else (*SIDES, *TWINS)

    def save(self) -> None:
        """Leave it to the processes of the sides."""
        told = {"pieces": self.pieces, "source": self.source, "dtype": self.dtype}
        (self.directory / "plan.json").write_text(json.dumps(told, indent=1))

    def config(self, piece: str) -> TrainConfig:
        """The configuration of a piece of work."""
        return read_config(self._piece(piece))

    def batches(self, piece: str) -> list[Sequence[Trajectory]]:
        """What each update begins with: rows that have no advantages yet, lost episodes among them."""
        store = TrajectoryStore(self._piece(piece) / "trajectories", keep=UPDATES)
        return [store.read(step).trajectories for step in store.steps()]

    def start(self, piece: str) -> Path:
        """The directory of the weights that a piece of work starts from."""
        return self.directory / "starts" / self.pieces[piece]

    def evidence(self, side: str, piece: str) -> Path:
        """Where a side leaves what it computed in a piece of work."""
        return self.directory / "evidence" / side / piece

    def case(self, piece: str) -> Case | LiveCase:
        """What the piece is about."""
        return _NAMED[piece.rpartition("/")[2]]

    def _piece(self, piece: str) -> Path:
        return self.directory / "pieces" / piece


def load_plan(directory: Path) -> Plan:
    """Raises `ConfigError` when there is none in `directory`."""
    file = directory / "plan.json"
    if not file.is_file():
        raise ConfigError(f"out={directory}: nothing was replayed there yet; name a recording")
    return Plan(directory, **json.loads(file.read_text()))


def make_plan(recording: Recording, directory: Path, parts_for: PartsFor, dtype: DType = "float32") -> Plan:
    """Lay out all cases in the new directory `directory`. A run's recording, which has the weights to replay it on, is
    replayed on these; one that was played, on full weights and on an adapter. Live runs are for float32: in bfloat16 a
    near tie that is decided otherwise changes the rest of a run."""
    recording = replace(recording, config=with_keys(recording.config, {"model.dtype": dtype}))
    cases = _NAMED if dtype == "float32" else {case.name: case for case in CASES}
    pieces: dict[str, str] = {}
    kinds = _weights(recording)
    for weights in kinds:
        wanted = [name for name, case in cases.items() if len(kinds) == 1 or case.weights in (None, weights)]
        pieces |= _lay_out(recording, directory, weights, wanted, parts_for)
    source = f"{len(recording.steps)} batches of {display_path(recording.directory)}"
    plan = Plan(directory, pieces, source, dtype)
    plan.save()
    return plan


def _weights(recording: Recording) -> tuple[Weights, ...]:
    if recording.checkpoint is None:
        return WEIGHTS
    return ("lora",) if recording.config.lora.enabled else ("full",)


def _lay_out(
    recording: Recording, directory: Path, weights: Weights, wanted: Sequence[str], parts_for: PartsFor
) -> dict[str, str]:
    config = replayable(recording.config, weights)
    policy = parts_for(config).policy
    if (checkpoint := _checkpoint(recording, weights)) is not None:
        load_weights(checkpoint, policy)
    recorded = recording.batches()
    pieces: dict[str, str] = {}
    for name in wanted:
        piece, case = f"{weights}/{name}", _NAMED[name]
        if isinstance(case, LiveCase):
            moved, of_case = _LIVE_MOVED, case.config(recording.config, weights)
        else:
            batches = [case.rows(batch.trajectories, policy.special.image_token_id) for batch in recorded]
            longest = max(len(row) for rows in batches for row in rows)
            moved, of_case = case.moved, case.config(recording.config, weights, longest)
            _record(directory / "pieces" / piece, [_scored(case, rows, policy, of_case) for rows in batches])
        write_config(directory / "pieces" / piece, of_case)
        pieces[piece] = _start(directory, weights, moved, of_case, recording, parts_for)
    return pieces


def _record(directory: Path, batches: Sequence[Sequence[Trajectory]]) -> None:
    store = TrajectoryStore(directory / "trajectories", keep=UPDATES)
    for step in range(UPDATES):
        rows = batches[step % len(batches)]
        store.record(step + 1, Batch(rows, [0.0] * len(rows)))


def _scored(case: Case, rows: list[Trajectory], policy: PolicyModel, config: TrainConfig) -> list[Trajectory]:
    if case.rescored:
        rows = rescored(policy, rows, config.rollout.temperature)
    return drifted(rows) if case.drifted else rows


def _start(
    directory: Path, weights: Weights, moved: float, config: TrainConfig, recording: Recording, parts_for: PartsFor
) -> str:
    """The name of the checkpoint, which is made unless another piece has made it."""
    name = f"{weights}-moved-{moved:g}" if moved else weights
    if not (directory / "starts" / name).exists():
        checkpoint = _checkpoint(recording, weights)
        make_start(directory / "starts" / name, config, parts_for(config), checkpoint, moved)
    return name


def _checkpoint(recording: Recording, weights: Weights) -> Path | None:
    """The recorded one, if it holds weights of this kind."""
    return recording.checkpoint if recording.config.lora.enabled == (weights == "lora") else None
