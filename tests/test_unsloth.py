"""Unsloth's CPU path, text only, against plain transformers and peft; skipped where Unsloth is not installed."""

import importlib.util
import random
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import tiny_random
import torch

from cua_agent.models.errors import PackageMissing, UnsupportedModel
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.models.unsloth import import_unsloth, load_model_with_unsloth, mend_image_processor
from tests.text_rows import sampled_rows
from trainers.config import LossConfig, TrainConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import Batch
from trainers.run.checkpoint import save_weights

installed = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed (make unsloth)"
)
SPEC = LoraSpec(r=4, seed=3)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(tiny_random.build_text(Path(mkdtemp()), request.param, hidden=64))


def unsloth(path: str, **options: Any) -> PolicyModel:
    return load_policy(path, loader="unsloth", lora=SPEC, **options)


def shift(policy: PolicyModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits(policy: PolicyModel) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = policy.model(input_ids=torch.tensor([policy.encode("Settings: Wi-Fi on")])).logits
    return result


def gradients(policy: PolicyModel, batch: Batch) -> dict[str, torch.Tensor]:
    policy.model.train()
    for micro in micro_batches(policy, batch, LossConfig(), budget=200):
        (score_tokens(policy, micro, 1.0).logprobs * micro.old_logprobs[micro.loss_mask]).sum().backward()
    policy.model.eval()
    return {name: p.grad for name, p in policy.trainable_parameters() if p.grad is not None}


@installed
@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_and_gradients_are_those_of_plain_peft(checkpoint: str, checkpointing: bool) -> None:
    plain, ours = load_policy(checkpoint, lora=SPEC), unsloth(checkpoint, gradient_checkpointing=checkpointing)
    own = dict(ours.trainable_parameters())
    assert {name: p.tolist() for name, p in plain.trainable_parameters()} == {n: p.tolist() for n, p in own.items()}
    assert torch.equal(logits(plain), logits(ours))
    shift(plain)
    shift(ours)
    rows = sampled_rows(plain)
    expected, found = (gradients(policy, Batch(rows, [1.0] * len(rows))) for policy in (plain, ours))
    assert set(found) == set(own)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@installed
def test_the_engine_samples_what_training_scores(checkpoint: str) -> None:
    policy = unsloth(checkpoint, gradient_checkpointing=True)
    shift(policy)
    rows = sampled_rows(policy)
    for micro in micro_batches(policy, Batch(rows, [1.0] * len(rows)), LossConfig(), budget=10_000):
        trained = score_tokens(policy, micro, 1.0).logprobs.detach()
        torch.testing.assert_close(trained, micro.old_logprobs[micro.loss_mask], atol=1e-4, rtol=0)


@installed
def test_updates_change_what_is_sampled(checkpoint: str) -> None:
    policy = unsloth(checkpoint, gradient_checkpointing=True)
    learner = PolicyLearner(policy, TrainConfig())
    before = logits(policy)
    for _ in range(2):
        rows = sampled_rows(policy, answers=1)
        record = learner.update(Batch(rows, [1.0 if row.reward else -1.0 for row in rows]))
        assert not record.skipped
    assert not torch.equal(logits(policy), before)
    assert not policy.model.training


@installed
@pytest.mark.parametrize(("saved_by", "loaded_by"), [("unsloth", "peft"), ("peft", "unsloth")])
def test_an_adapter_moves_between_loaders(checkpoint: str, tmp_path: Path, saved_by: Any, loaded_by: Any) -> None:
    policy = load_policy(checkpoint, loader=saved_by, lora=SPEC)
    shift(policy)
    save_weights(tmp_path, policy)
    assert torch.equal(logits(load_policy(str(tmp_path), loader=loaded_by)), logits(policy))


@installed
def test_plain_peft_reads_the_adapter(checkpoint: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = unsloth(checkpoint)
    shift(policy)
    save_weights(tmp_path, policy)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), str(tmp_path))
    ids = torch.tensor([policy.encode("Settings: Wi-Fi on")])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, logits(policy))


@installed
def test_loading_leaves_the_random_generators(checkpoint: str) -> None:
    def draws() -> tuple[float, float, float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    unsloth(checkpoint)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == draws()


@installed
def test_the_name_of_the_guide_returns_model_and_tokenizer(checkpoint: str) -> None:
    model, tokenizer = load_model_with_unsloth(
        checkpoint, 512, False, lora=SPEC, reads_images=False, dtype="float32", device="cpu"
    )
    assert hasattr(model, "disable_adapter")
    assert tokenizer.decode(tokenizer.encode("Wi-Fi")) == "Wi-Fi"


def test_a_model_with_eyes_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="does not do on a CPU; allowed: loader=peft, or a GPU"):
        unsloth(str(tiny_random.build(tmp_path)))


@installed
def test_its_patch_of_the_image_processor_is_undone(checkpoint: str) -> None:
    """Applied on GPUs: with it, no processor of the pinned transformers can be made."""
    unsloth(checkpoint)
    importlib.import_module("unsloth_zoo.temporary_patches.misc").patch_qwen2vl_image_processor_pixel_attrs()
    with pytest.raises(AttributeError, match="no setter"):
        load_policy("tiny")
    mend_image_processor()
    policy = load_policy("tiny")
    assert policy.image_processor.min_pixels == policy.image_processor.size["shortest_edge"]


PATCHING = """
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

for name in ("min_pixels", "max_pixels"):
    setattr(Qwen2VLImageProcessor, name, property(lambda self: 0))
"""


def test_it_is_undone_as_soon_as_unsloth_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth patches when it is imported on a GPU, and a model's image processor is read before its weights."""
    (tmp_path / "unsloth.py").write_text(PATCHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_AUTO_DEVICE_MAP"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path))
    import_unsloth("cuda")
    monkeypatch.delitem(sys.modules, "unsloth")
    processor = load_policy("tiny").image_processor
    assert processor.min_pixels == processor.size["shortest_edge"] > 0


def test_a_missing_package_is_one_line(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PackageMissing, match=r"^loader.name=unsloth: .* not installed; run: make unsloth$"):
        unsloth(checkpoint)


def test_all_weights_are_not_trained_through_unsloth(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"adapters only; allowed: lora.enabled=true, or loader=peft"):
        load_policy(checkpoint, loader="unsloth")
