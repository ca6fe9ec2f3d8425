"""Where tensors and processes go: what is made anew follows what it is made from, `cuda:N` is card N everywhere."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cua_agent.models.errors import ModelError
from cua_agent.models.loaders import load_policy
from tests.refusals import refusal
from trainers.config import ConfigError, LoaderConfig, TrainConfig
from trainers.distributed.torchrun import check_processes

pytest.importorskip("areal")


def on_a_device_that_is_not_the_default() -> Any:
    """Tensors that are made without a device come to lie on "meta", and meet those of the batch with an error."""
    return torch.device("meta")


def test_normalised_rewards_stay_where_the_rewards_are() -> None:
    from trainers.areal.train.ppo_actor import RaggedNorm

    episodes = [torch.tensor([0, 1, 1], device="cpu"), torch.tensor([0, 1], device="cpu")]
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0], device="cpu")
    with on_a_device_that_is_not_the_default():
        normalised = RaggedNorm(TrainConfig(), episodes)(rewards)
    assert normalised.device.type == "cpu"
    assert normalised.tolist() == pytest.approx([1, -1, -1, -1, 1])


def test_advantages_stay_where_the_batch_is() -> None:
    from areal.trainer.ppo.actor import PPOActor

    from trainers.areal.config.translation import ppo_actor_config
    from trainers.areal.train.ppo_actor import PPOPolicyActor

    actor = PPOPolicyActor.__new__(PPOPolicyActor)
    actor._train_config = TrainConfig(backend="areal")
    actor.config = ppo_actor_config(actor._train_config)
    actor.actor = PPOActor(actor.config, actor)
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]], dtype=torch.int32, device="cpu")
    group = {
        "input_ids": torch.ones(2, 3, dtype=torch.int64, device="cpu"),
        "attention_mask": torch.ones(2, 3, dtype=torch.bool, device="cpu"),
        "loss_mask": mask,
        "logprobs": -mask.float(),
        "rewards": torch.tensor([1.0, 0.0], device="cpu"),
        "episode": torch.tensor([0, 1], device="cpu"),
    }
    with on_a_device_that_is_not_the_default():
        [result] = actor.compute_advantages([group])
    assert result["advantages"].device.type == "cpu"
    assert result["advantages"].flatten().tolist() == pytest.approx([1, 1, 0, -1, 0, 0])


def test_a_group_of_one_process_reduces_on_cpu_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from areal.engine.fsdp_engine import FSDPEngine

    from trainers.areal.train.fsdp_actor import FSDPPolicyActor

    backends: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(FSDPEngine, "create_process_group", lambda *_: None)
    actor = FSDPPolicyActor.__new__(FSDPPolicyActor)
    actor.create_process_group()
    assert backends == ["cpu:gloo,cuda:nccl"]
    assert actor.own_global_group  # AReaL ends it


@pytest.mark.parametrize(("device", "card"), [("cuda:1", "1"), ("cuda", "0"), ("cpu", "0")])
def test_the_card_of_the_device_is_the_engine_s(
    device: str, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.areal.process import prepare_process

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    prepare_process(tmp_path, device)
    assert os.environ["LOCAL_RANK"] == card


def test_a_launcher_s_local_rank_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.areal.process import prepare_process

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    prepare_process(tmp_path, "cuda")
    assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize("unread", [False, True])
def test_weights_are_loaded_onto_the_process_s_own_card(unread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads in threads, to which "cuda" is card 0."""
    from cua_agent.models import loaders

    asked: list[str] = []

    def loading(source: object, manner: Any, *_: object) -> None:
        asked.append(manner.device)
        raise InterruptedError

    monkeypatch.setattr(loaders, "check_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(loaders, "_load_with_peft", loading)
    with pytest.raises(InterruptedError):
        load_policy("tiny", device="cuda", unread=unread)
    assert asked == ["cuda:1"]


def test_runs_of_one_seed_are_dealt_ports_of_their_own(tmp_path: Path) -> None:
    from areal.utils.network import find_free_ports

    from trainers.areal.process import prepare_process

    prepare_process(tmp_path)
    dealt = []
    for _run in range(2):
        random.seed(0)  # as AReaL's trainer does
        dealt.append(find_free_ports(8))
    assert dealt[0] != dealt[1]


@pytest.mark.parametrize(
    ("visible", "count", "own"),
    [
        (None, 2, ["0", "1"]),
        ("2, 3", 2, ["2", "3"]),
        ("3,1,2", 2, ["3", "1"]),
        ("GPU-5,MIG-7", 1, ["GPU-5"]),
        ("2", 0, []),
    ],
)
def test_workers_use_the_gpus_that_the_run_may_use(
    visible: str | None, count: int, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.areal.cluster.schedulers import own_gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert own_gpus(count) == own


@pytest.mark.parametrize(("device", "planned"), [("cuda", False), ("cpu", True)])
def test_attention_on_a_gpu_is_not_planned_for_every_length(
    device: str, planned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cudnn: list[bool] = [True]
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: cudnn.append(on))
    with pytest.raises(ModelError):
        load_policy(str(tmp_path / "nowhere"), device=device)
    assert cudnn[-1] is planned


def test_one_card_for_several_processes_is_refused() -> None:
    config = replace(TrainConfig(backend="areal", phase=3), loader=LoaderConfig(device="cuda:1"))
    with pytest.raises(ConfigError, match=r"^loader\.device=cuda:1 with 2 processes: allowed: cuda .*or cpu$"):
        check_processes(config, 2)


@pytest.mark.parametrize("phase", [2, 3])
def test_fsdp_on_a_mac_is_refused(phase: int) -> None:
    assert "set loader.device=cpu, phase=1" in refusal("loader.device=mps", "backend=areal", f"phase={phase}")
