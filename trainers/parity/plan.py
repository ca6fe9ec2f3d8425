"""Everything that is replayed, laid out in one directory that every side reads.

plan.json                the pieces of work, and where each starts
pieces/<piece>/          config.yaml and trajectories/ of a piece
starts/<name>/           checkpoints
evidence/<side>/<piece>/ what each side came to
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.config import ConfigError, TrainConfig
from trainers.parity.cases import CASES, WEIGHTS, Case, Weights, replayable
from trainers.parity.greedy import greedy_config
from trainers.parity.recording import UPDATES, Recording, read_config, write_config
from trainers.parity.replay import PartsFor
from trainers.parity.starts import make_start, rescored
from trainers.protocol import Batch
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.checkpoint import load_weights
from trainers.run.directory import display_path

GREEDY = "greedy"


@dataclass(frozen=True)
class Plan:
    """`pieces`: from the name of each piece of work, "<weights>/<case>", to that of the checkpoint it starts at;
    `source`: what was recorded, in words."""

    directory: Path
    pieces: Mapping[str, str]
    source: str = ""

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

    def is_greedy(self, piece: str) -> bool:
        """Whether a piece of work is a greedy run."""
        return piece.endswith(f"/{GREEDY}")

    def _piece(self, piece: str) -> Path:
        return self.directory / "pieces" / piece


def load_plan(directory: Path) -> Plan:
    """Raises `ConfigError` when there is none in `directory`."""
    file = directory / "plan.json"
    if not file.is_file():
        raise ConfigError(f"out={directory}: nothing was replayed there yet; name a recording")
    return Plan(directory, **json.loads(file.read_text()))


def make_plan(recording: Recording, directory: Path, parts_for: PartsFor) -> Plan:
    """Lay out all cases in the new directory `directory`. A run's recording, which has the weights to replay it on, is
    replayed on these; one that was played, on full weights and on an adapter."""
    pieces: dict[str, str] = {}
    for weights in _weights(recording):
        pieces |= _lay_out(recording, directory, weights, parts_for)
    source = f"{len(recording.steps)} batches of {display_path(recording.directory)}"
    (directory / "plan.json").write_text(json.dumps({"pieces": pieces, "source": source}, indent=1))
    return Plan(directory, pieces, source)


def _weights(recording: Recording) -> tuple[Weights, ...]:
    if recording.checkpoint is None:
        return WEIGHTS
    return ("lora",) if recording.config.lora.enabled else ("full",)


def _lay_out(recording: Recording, directory: Path, weights: Weights, parts_for: PartsFor) -> dict[str, str]:
    config = replayable(recording.config, weights)
    policy = parts_for(config).policy
    if (checkpoint := _checkpoint(recording, weights)) is not None:
        load_weights(checkpoint, policy)
    recorded = recording.batches()
    pieces: dict[str, str] = {}
    for case in CASES:
        piece = f"{weights}/{case.name}"
        batches = [_of_case(case, batch, policy, config) for batch in recorded]
        longest = max(len(row) for rows in batches for row in rows)
        of_case = case.config(recording.config, weights, longest)
        write_config(directory / "pieces" / piece, of_case)
        store = TrajectoryStore(directory / "pieces" / piece / "trajectories", keep=UPDATES)
        for step in range(UPDATES):
            rows = batches[step % len(batches)]
            store.record(step + 1, Batch(rows, [0.0] * len(rows)))
        pieces[piece] = _start(directory, weights, case.moved, of_case, recording, parts_for)
    piece = f"{weights}/{GREEDY}"
    of_greedy = greedy_config(recording.config, weights)
    write_config(directory / "pieces" / piece, of_greedy)
    return {**pieces, piece: _start(directory, weights, 0.01, of_greedy, recording, parts_for)}


def _of_case(case: Case, recorded: Batch, policy: PolicyModel, config: TrainConfig) -> list[Trajectory]:
    rows = case.rows(recorded.trajectories, policy.special.image_token_id)
    if case.rescored:
        rows = rescored(policy, rows, config.rollout.temperature)
    return rows


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
