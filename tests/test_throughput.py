"""The figures of how fast an update is: operations counted by hand, and what a machine without a GPU says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.policy_rows import row
from tests.tiny_random import build
from trainers.protocol import Batch
from trainers.run.gpu_meter import GpuMeter
from trainers.run.operations import UpdateOperations, peak_flops
from trainers.run.throughput import Throughput, throughput


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("adapter", [True, False])
def test_operations_by_hand(weights: Path, adapter: bool) -> None:
    policy = load_policy(str(weights), lora=LoraSpec(r=4) if adapter else None, freeze_vision=True)
    rows = [row(policy, 0, [(64, 64, 2)]), row(policy, 1, [(0, 0, 3)])]
    base = policy.base_model
    text, eyes = base.config.text_config, base.config.vision_config
    named = {name: p.numel() for name, p in policy.model.named_parameters() if "lora_" not in name}
    language = sum(n for name, n in named.items() if ".layers." in name or name.endswith("language_model.norm.weight"))
    vision = sum(n for name, n in named.items() if ".visual." in name)
    words = text.vocab_size * text.hidden_size
    assert language + vision + words * (1 if base.config.tie_word_embeddings else 2) == sum(named.values())
    passes, lengths = (4 if adapter else 6), [len(own) for own in rows]
    patches = policy.image_tokens(64, 64) * policy.image_processor.merge_size**2
    wanted = (
        passes * (language * sum(lengths) + words * 5)
        + 3 * 2 * sum(n**2 for n in lengths) * text.num_attention_heads * text.head_dim * text.num_hidden_layers
        + 2 * vision * patches
        + 4 * patches**2 * eyes.hidden_size * eyes.depth
    )
    assert UpdateOperations(policy)(Batch(rows, [1.0, -1.0])) == wanted


def test_throughput_is_for_each_process() -> None:
    figures = throughput(tokens=3000, operations=6e12, seconds=1.5, processes=2)
    assert (figures.tokens_per_s, figures.tflops) == (1000, 2.0)
    assert math.isnan(figures.mfu)
    assert math.isnan(throughput(0, 0.0, 1.0, 1).tokens_per_s) and math.isnan(Throughput().tflops)


def test_the_card_is_known_by_its_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("some card") is None


def test_without_a_gpu_there_is_nothing_to_watch() -> None:
    meter = GpuMeter()
    meter.start()
    figures = meter.stop()
    assert math.isnan(figures.wait_s) and math.isnan(figures.peak_gib)
