"""model.dtype=bfloat16 means the same on every side: trained in float32, computed and served in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cua_agent.models.loaders import load_policy
from tests.sides_rig import batch, one_group, opened_side, side_config
from tests.tiny_random import build
from trainers.config import LoraConfig, TrainConfig
from trainers.distributed.sharded_tensors import sharded_like
from trainers.parity.replay import SIDES, Opened, Side

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def half(config: TrainConfig) -> TrainConfig:
    return replace(config, model=replace(config.model, dtype="bfloat16"))


def saved(opened: Opened, path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of the present policy."""
    opened.trainer.save(path)
    return load_file(path / "model.safetensors")


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """|theirs - ours| / |ours|, over all tensors as one vector."""
    a, b = (torch.cat([tensors[name].double().flatten() for name in sorted(ours)]) for tensors in (ours, theirs))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("side", SIDES)
def test_the_smallest_steps_move_the_weights_and_a_checkpoint_keeps_them(
    model: Path, tmp_path: Path, side: Side
) -> None:
    config = half(side_config(model))
    with opened_side(replace(config, optim=replace(config.optim, learning_rate=1e-6)), side) as opened:
        data = batch(one_group(opened))
        start = saved(opened, tmp_path / "start")
        for _ in range(2):
            opened.trainer.update(data)
        trained = saved(opened, tmp_path / "trained")
        opened.trainer.update(data)
        on = saved(opened, tmp_path / "on")
        opened.trainer.load(tmp_path / "trained")
        opened.trainer.update(data)
        again = saved(opened, tmp_path / "again")
    moved = sum(int((trained[name] != start[name]).sum()) for name in start)
    assert moved / sum(weight.numel() for weight in start.values()) > 0.99  # AdamW on bfloat16: 0.01
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert apart(on, again) == 0  # a resume is exact
    served = load_policy(str(tmp_path / "trained"), dtype="bfloat16")
    for name, parameter in served.trainable_parameters():
        assert torch.equal(parameter, trained[name].bfloat16())


@pytest.mark.parametrize("side", SIDES)
def test_the_model_holds_the_rounded_master_weights(model: Path, tmp_path: Path, side: Side) -> None:
    with opened_side(half(side_config(model)), side) as opened:
        opened.trainer.update(batch(one_group(opened)))
        masters = saved(opened, tmp_path / "saved")
        for name, parameter in opened.components.policy.trainable_parameters():
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, masters[name].bfloat16())


def test_an_adapter_samples_from_the_rounded_master_weights_too(model: Path, tmp_path: Path) -> None:
    config = half(replace(side_config(model), lora=LoraConfig(enabled=True, r=4)))
    with opened_side(config, "legacy") as opened:
        opened.trainer.update(batch(one_group(opened)))
        opened.trainer.save(tmp_path / "saved")
        masters = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        assert {weight.dtype for weight in masters.values()} == {torch.float32}
        held = {name.replace(".default", ""): p for name, p in opened.components.policy.trainable_parameters()}
        for name, parameter in held.items():
            assert torch.equal(parameter, masters[name].bfloat16())
        assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in masters.values())


def gradients(config: TrainConfig, side: Side) -> Mapping[str, Tensor]:
    """Of one batch; an adapter has trained already."""
    with opened_side(config, side) as opened:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in opened.components.policy.trainable_parameters():
            if "lora_B" in name:
                parameter.data.copy_(sharded_like(0.05 * torch.randn(parameter.shape, generator=generator), parameter))
        return opened.trainer.loss_and_gradients(batch(one_group(opened))).gradients


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kl", [0.0, 0.1], ids=["", "with a reference"])
def test_gradients_in_bfloat16_differ_by_less_than_bfloat16_costs(model: Path, kl: float, adapter: bool) -> None:
    config = replace(side_config(model), lora=LoraConfig(enabled=adapter, r=4))
    config = replace(config, loss=replace(config.loss, kl_coefficient=kl))
    exact = gradients(config, "legacy")
    ours = gradients(half(config), "legacy")
    cost = apart(exact, ours)
    assert 0 < cost < 0.1
    for side in ("phase2", "phase3"):
        theirs = gradients(half(config), side)
        assert {gradient.dtype for gradient in theirs.values()} == {torch.float32}
        assert apart(ours, theirs) < cost / 2
