"""The same trainer on every side (legacy and the phases), on a random model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cua_agent.trajectory import Trajectory
from tests.parity_rig import toy_parts
from tests.policy_rows import ragged_batch
from trainers.config import LoggingConfig, ModelConfig, OptimConfig, TrainConfig
from trainers.distributed.sharded_tensors import whole
from trainers.grpo.advantages import batch_of
from trainers.parity.replay import Opened, Side, on_side, opened
from trainers.protocol import Batch


def side_config(model: Path) -> TrainConfig:
    """Plain training of all weights of the checkpoint `model`."""
    return TrainConfig(
        threads=1,
        model=ModelConfig(path=str(model), freeze_vision=False),
        optim=OptimConfig(warmup_steps=0),
        logging=LoggingConfig(tensorboard=False, save_trajectories=0),
    )


@contextmanager
def opened_side(config: TrainConfig, side: Side) -> Iterator[Opened]:
    """The trainer of `side` with its components; nothing is played."""
    config = on_side(config, side)
    with opened(config, toy_parts(config)) as opened_trainer:
        yield opened_trainer


def trained_weights(opened_side: Opened) -> dict[str, npt.NDArray[np.float32]]:
    """The trained parameters by name, whole."""
    return {
        name: whole(parameter).float().cpu().numpy().copy()
        for name, parameter in opened_side.components.policy.trainable_parameters()
    }


def one_group(opened_side: Opened) -> list[Trajectory]:
    """The rows of `ragged_batch` as one group whose rewards differ."""
    rows = ragged_batch(opened_side.components.policy).trajectories
    return [replace(row, reward=float(index % 2)) for index, row in enumerate(rows)]


def batch(rows: list[Trajectory]) -> Batch:
    """`rows` with the advantages that their rewards make, which is what every side trains on."""
    return batch_of(rows, TrainConfig().advantage)


def cut(row: Trajectory, length: int) -> Trajectory:
    """The first `length` tokens of a row."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        name: getattr(row, name)[:length] for name in ("input_ids", "loss_mask", "logprobs", "versions")
    }
    return replace(row, **arrays)


def with_value(row: Trajectory, name: str, place: int, value: float) -> Trajectory:
    """`row` with another entry at `place` of one of its arrays."""
    array = getattr(row, name).copy()
    array[place] = value
    return replace(row, **{name: array})


def first_trained(row: Trajectory) -> int:
    """Where the first trained token of the row is."""
    return int(np.flatnonzero(row.loss_mask)[0])
