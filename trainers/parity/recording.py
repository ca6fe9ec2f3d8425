"""Recordings: real batches, and what they were made with, in the layout of a run directory.

    config.yaml                            of the run that made them
    trajectories/step_000001.safetensors   recorded batches, see `trainers.rollouts.trajectory_store`
    checkpoints/last/                      the weights to replay them on (absent: those of `model.path`)

So a run directory is a recording itself; `record_run` copies out of one what a replay needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.saved import read_yaml
from trainers.protocol import Batch
from trainers.rollouts.trajectory_store import TrajectoryStore

UPDATES = 5
"""Batches of a recording, and updates of the ladder's rung 3."""


@dataclass(frozen=True)
class Recording:
    """A recording in `directory`: the newest `UPDATES` of its batches with something to train on. `checkpoint` holds
    the weights that they are nearest to, if they were saved."""

    directory: Path
    config: TrainConfig
    steps: tuple[int, ...]
    checkpoint: Path | None

    def batches(self) -> list[Batch]:
        """Oldest first. Raises `TrajectoryFileError`."""
        store = TrajectoryStore(self.directory / "trajectories", keep=0)
        return [store.read(step) for step in self.steps]


def load_recording(directory: Path) -> Recording:
    """The recording, or the run, in `directory`. Raises `ConfigError` when nothing can be replayed from it."""
    from trainers.run.checkpoint_files import CheckpointError
    from trainers.run.resuming import find_checkpoint

    config = read_config(directory)
    store = TrajectoryStore(directory / "trajectories", keep=0)
    steps = tuple(step for step in store.steps() if not store.is_empty(step))[-UPDATES:]
    if not steps:
        raise ConfigError(
            f"recording={directory}: no recorded batch in it has a group with signal; train with "
            f"logging.save_trajectories={UPDATES}"
        )
    try:
        checkpoint = find_checkpoint(str(directory))
    except CheckpointError:
        checkpoint = None
    return Recording(directory, config, steps, checkpoint)


def read_config(directory: Path) -> TrainConfig:
    """What `write_config`, or a run, left in `directory`. Raises `ConfigError`."""
    file = directory / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"recording={directory}: no config.yaml in it; allowed: a recording or a run directory")
    return from_mapping({**read_yaml(file), "resume": None})


def write_config(directory: Path, config: TrainConfig) -> None:
    """Leave the configuration beside the recorded batches, secrets masked."""
    from trainers.run.directory import masked_config, to_yaml

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(masked_config(config)), encoding="utf-8")


def record_run(run: Path, out: Path) -> Recording:
    """Copy the newest batches of a run, its configuration and its last checkpoint to the new directory `out`."""
    recording = load_recording(run)
    trajectories = _new(out) / "trajectories"
    trajectories.mkdir()
    shutil.copy2(run / "config.yaml", out)
    store = TrajectoryStore(run / "trajectories", keep=0)
    for step in recording.steps:
        shutil.copy2(store.path(step), trajectories)
    if recording.checkpoint is not None:
        shutil.copytree(recording.checkpoint, out / "checkpoints" / "last")
    return load_recording(out)


def record_played(config: TrainConfig, out: Path, on_done: Callable[[int], None]) -> Recording:
    """Play `UPDATES` batches with the model as it is and record them in the new directory `out`; `on_done` is told
    how many there are. Raises `ConfigError` when no group of a batch gave a signal."""
    from trainers.components import build_components, build_engine
    from trainers.grpo.advantages import batch_of
    from trainers.legacy.rollouts import SynchronousRollouts

    config = replace(config, backend="legacy", resume=None)
    write_config(_new(out), config)
    store = TrajectoryStore(out / "trajectories", keep=UPDATES)
    components = build_components(config)
    with closing(SynchronousRollouts(config, components, build_engine(config, components.policy))) as rollouts:
        for step in range(1, UPDATES + 1):
            collected, _ = rollouts.collect(lambda *_: None)
            rows = [row for group in collected.kept for row in group.rows]
            if not rows:
                raise ConfigError(
                    f"rollout.groups_per_step={config.rollout.groups_per_step}: no group of batch {step} gave a signal "
                    "(all episodes alike); allowed: more groups, more episodes per group, another seed"
                )
            store.record(step, batch_of(rows, config.advantage))
            on_done(step)
    return load_recording(out)


def _new(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"out={directory}: exists already; allowed: a new directory") from None
    return directory
