"""FSDP saves memory only when nobody holds on to what it sharded."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.legacy_rig import Watcher
from tests.tiny_random import build
from tests.vllm_fakes import FakeVllm, served, server_info
from trainers.components import Components, build_components
from trainers.config import InferenceConfig, LoraConfig, LossConfig, ModelConfig, TrainConfig
from trainers.distributed.sharded_tensors import whole

pytest.importorskip("areal")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def test_servers_need_no_copy_of_the_policy_in_this_process(weights: Path) -> None:
    from trainers.areal.rollout.rollout_worker import serving_policy

    policy = load_policy(str(weights))
    config = TrainConfig()
    assert serving_policy(replace(config, inference=InferenceConfig(name="vllm")), policy) is policy
    copy = serving_policy(config, policy)  # in this process, training and sampling go on at the same time
    trained, sampled = (dict(p.model.named_parameters()) for p in (policy, copy))
    assert all(trained[name] is not sampled[name] for name in trained)
    assert all(torch.equal(trained[name], sampled[name]) for name in trained)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [2, 3])
@pytest.mark.parametrize("lora", [True, False])
def test_servers_serve_weights_that_were_never_whole_in_this_process(
    weights: Path, phase: Literal[2, 3], lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.areal.trainer import AReaLGRPOTrainer

    built: list[Components] = []

    def build(config: TrainConfig, *, sharded: bool = False, **_: object) -> Components:
        built.append(build_components(config, sharded=sharded))
        assert all(p.is_meta for n, p in built[0].policy.model.named_parameters() if "lora_" not in n)
        return built[0]

    monkeypatch.setattr("trainers.areal.trainer.build_components", build)
    fake = FakeVllm(load_policy(str(weights)))
    fake.info = server_info(max_model_len=4096, images=12, lora={"max_lora_rank": 8, "max_loras": 8} if lora else None)
    with served(fake.app()) as url:
        config = TrainConfig(
            backend="areal",
            phase=phase,
            model=ModelConfig(path=str(weights), max_length=4096),
            lora=LoraConfig(enabled=lora, r=4),
            inference=InferenceConfig(name="vllm", servers=(url,)),
            loss=LossConfig(kl_coefficient=0.1),
        )
        with closing(AReaLGRPOTrainer(config, tmp_path, Watcher())):  # the canary has compared both sides
            [components] = built
            assert components.policy.unread is None
            base = components.policy.base_model
            assert base.get_output_embeddings().weight is base.get_input_embeddings().weight  # tied, as in the files
            expected = load_policy(str(weights), lora=LoraSpec(r=4, seed=config.seed) if lora else None)
            own = {name: whole(parameter) for name, parameter in components.policy.model.named_parameters()}
            for name, parameter in expected.model.named_parameters():
                assert torch.equal(own[name], parameter), name
