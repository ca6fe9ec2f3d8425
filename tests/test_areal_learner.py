"""AReaL's engine computes what plain torch computes: loss, gradients, weights, checkpoints."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.policy_rows import ragged_batch
from tests.tiny_random import build
from trainers.components import build_policy
from trainers.config import ArealConfig, LoraConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import TrainerState

areal_process = pytest.importorskip("trainers.areal.process")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    directory = tmp_path_factory.mktemp("areal")
    areal_process.prepare_process(directory)
    weights = build(directory / "model")
    return TrainConfig(
        backend="areal",
        model=ModelConfig(path=str(weights), freeze_vision=False),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
        areal=ArealConfig(packed_tokens=256),
    )


@contextmanager
def both(config: TrainConfig) -> Iterator[tuple[PolicyLearner, object]]:
    from trainers.areal.train.phase2_learner import Phase2Learner

    engine = Phase2Learner(build_policy(config), config)
    try:
        yield PolicyLearner(build_policy(config), config), engine
    finally:
        engine.close()


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([tensors[name].double().flatten() for name in ours]) for tensors in (ours, theirs))
    return float((a - b).norm() / a.norm())


VARIANTS = {
    "full": {},
    "lora": {"lora": LoraConfig(enabled=True, r=4)},
    "kl": {"loss": LossConfig(kl_coefficient=0.1)},
    "decoupled": {"loss": LossConfig(decoupled=True)},
    "sequence_mean": {"loss": LossConfig(normalisation="sequence_mean")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_five_updates_equal_plain_torch(base: TrainConfig, variant: str, tmp_path: Path) -> None:
    config = replace(base, **VARIANTS[variant])
    with both(config) as (ours, theirs):
        batch = ragged_batch(ours._policy)
        a, b = ours.loss_and_gradients(batch), theirs.loss_and_gradients(batch)
        assert b.metrics["loss"] == pytest.approx(a.metrics["loss"], rel=1e-5, abs=1e-6)
        assert difference(dict(a.gradients), dict(b.gradients)) < 1e-5
        for _ in range(5):
            x, y = ours.update(batch), theirs.update(batch)
            assert y.metrics["lr"] == x.metrics["lr"]
            assert y.metrics["grad_norm"] == pytest.approx(x.metrics["grad_norm"], rel=1e-4)
        assert difference(ours.trained_weights(), theirs.trained_weights()) < 1e-5

        theirs.snapshot(TrainerState(step=5)).write(tmp_path / "theirs")
        assert ours.load(tmp_path / "theirs") == TrainerState(step=5)
        assert difference(ours.trained_weights(), theirs.trained_weights()) == 0
        ours.update(batch)
        ours.snapshot(TrainerState(step=6)).write(tmp_path / "ours")
        theirs.load(tmp_path / "ours")
        assert difference(ours.trained_weights(), theirs.trained_weights()) == 0
        ours.update(batch), theirs.update(batch)
        assert difference(ours.trained_weights(), theirs.trained_weights()) < 1e-6


def test_nothing_of_the_images_outlives_an_update(base: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_way(*_: object) -> None:
        raise RuntimeError("half-way")

    with both(replace(base, areal=ArealConfig(packed_tokens=150))) as (_, learner):
        batch, threads = ragged_batch(learner._policy), threading.active_count()
        learner.update(batch)
        assert threading.active_count() == threads and learner._actor._images.gi_frame is None
        monkeypatch.setattr("trainers.areal.train.phase2_learner.grpo_loss", half_way)
        with pytest.raises(RuntimeError, match="half-way"):
            learner.update(batch)
        assert threading.active_count() == threads and learner._actor._images.gi_frame is None
