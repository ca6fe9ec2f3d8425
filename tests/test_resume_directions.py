"""A checkpoint of any backend or phase goes on in any other: the same next losses, weights and rates."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.sides_rig import batch, one_group, opened_side, side_config, trained_weights
from tests.tiny_random import build
from trainers.config import LoraConfig, TrainConfig
from trainers.parity.errors import distance
from trainers.parity.replay import SIDES, Opened, Side

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

LOSS, WEIGHTS = 1e-6, 1e-5
"""The parity ladder's tolerances between sides."""


@dataclass
class Course:
    """Two updates: their losses and learning rates, and the weights that they lead to."""

    losses: list[float]
    rates: list[float]
    weights: dict[str, np.ndarray]


def two_updates(opened: Opened) -> Course:
    rows = one_group(opened)
    data = [batch(rows), batch([replace(row, reward=1 - row.reward) for row in rows])]
    records = [opened.trainer.update(each).metrics for each in data]
    return Course([r["loss"] for r in records], [r["lr"] for r in records], trained_weights(opened))


@pytest.fixture(scope="module", params=["full", "lora"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    plain = side_config(build(tmp_path_factory.mktemp("tiny") / "model"))
    plain = replace(plain, optim=replace(plain.optim, learning_rate=1e-3, warmup_steps=9))
    return replace(plain, lora=LoraConfig(enabled=True, r=4, alpha=8)) if request.param == "lora" else plain


@pytest.fixture(scope="module")
def sources(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[Side, tuple[Path, Course]]:
    """By side: a checkpoint in the midst of training, and how the side itself goes on."""
    found: dict[Side, tuple[Path, Course]] = {}
    for side in SIDES:
        path = tmp_path_factory.mktemp("saved") / side
        with opened_side(config, side) as opened:
            two_updates(opened)
            opened.trainer.save(path)
            found[side] = path, two_updates(opened)
    return found


@pytest.fixture(scope="module", params=SIDES)
def target(request: pytest.FixtureRequest, config: TrainConfig) -> Iterator[tuple[Side, Opened]]:
    with opened_side(config, request.param) as opened:
        yield request.param, opened


@pytest.mark.parametrize("source", SIDES)
def test_any_side_goes_on_from_any_other(
    sources: dict[Side, tuple[Path, Course]], target: tuple[Side, Opened], source: Side
) -> None:
    (path, own), (side, opened) = sources[source], target
    opened.trainer.load(path)
    course = two_updates(opened)
    assert course.rates == own.rates == pytest.approx([3e-4, 4e-4])
    assert own.weights.keys() == course.weights.keys()
    if side == source:
        assert course.losses == own.losses
        assert all((course.weights[name] == own.weights[name]).all() for name in own.weights)
    assert course.losses == pytest.approx(own.losses, rel=LOSS)
    assert distance(own.weights, course.weights).relative <= WEIGHTS
