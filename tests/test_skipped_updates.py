"""What is not finite, or far off, in an update: the same numbers on every side, and no change where there is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cua_agent.trajectory import Trajectory
from tests.areal_rig import ran
from tests.legacy_rig import CONFIG, OneTokenRunner
from tests.sides_rig import batch, first_trained, one_group, opened_side, side_config, trained_weights, with_value
from tests.tiny_random import build
from trainers.config import EvalConfig, LossConfig
from trainers.parity.errors import distance
from trainers.parity.replay import SIDES, Opened, Side, on_side
from trainers.protocol import Batch

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def far_off(opened: Opened) -> list[Trajectory]:
    """Rows whose first trained tokens were sampled with log-probs 25 nats or more from the present ones, either way."""
    rows = one_group(opened)
    return [
        with_value(r, "logprobs", first_trained(r), value) if r.loss_mask.any() else r
        for r, value in zip(rows, (-60.0, -60.0, 30.0, 30.0, 0.0), strict=True)
    ]


@pytest.mark.parametrize("loss", [{}, {"decoupled": True}], ids=["plain", "decoupled"])
def test_log_ratios_are_bounded_at_twenty_nats_everywhere(model: Path, loss: dict[str, Any]) -> None:
    config = replace(side_config(model), loss=LossConfig(**loss))
    records = {}
    for name in SIDES:
        with opened_side(config, name) as opened:
            records[name] = opened.trainer.loss_and_gradients(batch(far_off(opened)))
    ours = records.pop("legacy")
    assert ours.metrics["ratio_max"] == pytest.approx(math.exp(20), rel=1e-6)
    arrays = {name: gradient.numpy() for name, gradient in ours.gradients.items()}
    for theirs in records.values():
        assert theirs.metrics["loss"] == pytest.approx(ours.metrics["loss"], rel=1e-5, abs=1e-5)
        assert distance(arrays, {name: g.numpy() for name, g in theirs.gradients.items()}).relative < 1e-4


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("loss", [{}, {"decoupled": True}], ids=["plain", "decoupled"])
def test_a_loss_that_is_not_finite_changes_nothing(model: Path, name: Side, loss: dict[str, Any]) -> None:
    with opened_side(replace(side_config(model), loss=LossConfig(**loss)), name) as opened:
        data = batch(one_group(opened))
        spoil_weights(opened)
        before = trained_weights(opened)
        record = opened.trainer.update(data)
        assert (record.skipped, record.reason) == (True, "the loss is nan")
        after = trained_weights(opened)
        assert all(np.array_equal(before[key], after[key], equal_nan=True) for key in before)


@torch.no_grad()
def spoil_weights(opened: Opened) -> None:
    """NaN in the last norm of the language model."""
    [parameter] = [
        p for name, p in opened.components.policy.trainable_parameters() if name.endswith("language_model.norm.weight")
    ]
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    local[0] = math.nan


@pytest.mark.parametrize("name", ["legacy", "phase1", "phase2"])
def test_a_gradient_that_overflows_changes_nothing(model: Path, name: Side) -> None:
    """Phase 3 makes its advantages from the rewards: none are that large."""
    with opened_side(side_config(model), name) as opened:
        rows = one_group(opened)
        before = trained_weights(opened)
        record = opened.trainer.update(Batch(rows, [1e37, -1e37, 1e37, -1e37, 1e37]))
        assert (record.skipped, record.reason) == (True, "the gradient's norm is inf")
        assert math.isfinite(record.metrics["loss"])
        assert distance(before, trained_weights(opened)).relative == 0


@dataclass
class Stuttering(OneTokenRunner):
    """The engine gives NaN for the log-prob of the third training episode."""

    ended: Iterator[int] = field(default_factory=itertools.count)

    async def __call__(self, environment: Any, spec: Any) -> list[Trajectory]:
        [trajectory] = await super().__call__(environment, spec)
        if not spec.episode_id.startswith("eval") and next(self.ended) == 2:
            return [replace(trajectory, logprobs=np.where(trajectory.loss_mask, np.nan, 0).astype(np.float32))]
        return [trajectory]


@pytest.mark.parametrize("name", SIDES)
def test_a_run_goes_on_after_a_skipped_update(model: Path, tmp_path: Path, name: Side) -> None:
    config = on_side(replace(CONFIG, max_steps=3, eval=EvalConfig(every_steps=0, episodes=4, baseline=False)), name)
    rewards, ended = itertools.count(), itertools.count()
    run = ran(
        model, tmp_path / "run", config, runner=Stuttering, reward=lambda _: float(next(rewards) % 2), ended=ended
    )
    skipped = [row["updates_skipped"] for row in run.rows]
    assert sorted(skipped) == [0, 0, 1]
    assert [row["policy_version"] for row in run.rows] == list(itertools.accumulate(1 - n for n in skipped))
    [said] = [line for line in run.messages if "skipped" in line]
    assert said.startswith(
        f"update skipped in step {1 + skipped.index(1)}, the policy is unchanged: the log-prob of token "
    )
    assert said.endswith(" is nan")
