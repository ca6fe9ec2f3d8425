"""The memory estimate: its parts against real models, its sums against what was measured on GPUs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_shapes import shape_config
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec, attach_lora
from cua_agent.models.memory import (
    GIB,
    ModelShape,
    TrainingSettings,
    layer_bytes,
    serving_memory,
    shape_of,
    training_memory,
)
from cua_agent.models.packed_attention import packed_rows, use_packed_attention
from cua_agent.models.sources import TINY_WEIGHTS
from trainers.config import LoraConfig, TrainConfig
from trainers.run.memory import training_settings

CARD_GIB = 79.6
"""Of an H100 of 80 GB."""
MEASURED: list[tuple[str, dict[str, Any], float]] = [
    ("2b", {"tokens": 15_760}, 7.8),
    ("2b", {"tokens": 15_760, "sharded": True}, 8.25),
    ("8b", {"tokens": 15_760}, 24.8),
    ("8b", {"tokens": 14_972, "sharded": True, "cards": 2}, 17.1),
]
"""Size, settings with the tokens of the longest forward pass, and GiB that torch.cuda.max_memory_allocated said, as in
docs/gpu.md."""


@pytest.mark.parametrize(("size", "settings", "gib"), MEASURED)
def test_estimates_are_near_what_was_measured(size: str, settings: dict[str, Any], gib: float) -> None:
    shape = shape_of(shape_config(size))
    estimate = training_memory(shape, TrainingSettings(**settings))
    assert gib / 1.1 < estimate.allocated / GIB < gib * 1.1


@pytest.mark.slow
def test_the_table_of_the_docs_is_the_estimate() -> None:
    text = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| (\d+B) \| ([\d.]+) \| ((?:\d+ \| ){6})$", text.replace(" |\n", " | \n"), re.MULTILINE)
    assert [size for size, *_ in rows] == ["2B", "4B", "8B", "32B"]
    for size, weights, cells in rows:
        shape = shape_of(shape_config(size.lower()))
        trainers = [TrainingSettings(), *(TrainingSettings(sharded=True, cards=cards) for cards in (2, 4))]
        share = 0.9 * CARD_GIB * GIB
        figures = [round(training_memory(shape, each).total / GIB) for each in trainers]
        figures += [serving_memory(shape, cards=cards).kv_tokens(share) // 16384 for cards in (1, 2, 4)]
        assert f"{shape.parameters * 2 / GIB:.1f}" == weights
        assert [int(cell) for cell in cells.strip(" |").split(" | ")] == figures


def test_a_shape_is_that_of_the_loaded_model() -> None:
    policy = load_policy("tiny", lora=LoraSpec(r=4))
    shape = shape_of(json.loads((TINY_WEIGHTS / "config.json").read_text()))
    counts = {name: parameter.numel() for name, parameter in policy.model.named_parameters()}
    adapter = sum(count for name, count in counts.items() if "lora_" in name)
    assert shape.adapter_per_rank * 4 == adapter
    assert shape.parameters == sum(counts.values()) - adapter
    assert shape.vision == sum(count for name, count in counts.items() if ".visual." in name)
    assert shape.largest_tensor == max(counts.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("adapter", [True, False])
def test_a_layer_keeps_what_autograd_saves(dtype: Any, adapter: bool) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}

    def kept(**other: int) -> float:
        return _saved(sizes | other | {"num_hidden_layers": 3}, dtype, adapter) - _saved(
            sizes | other | {"num_hidden_layers": 2}, dtype, adapter
        )

    def estimated(**other: int) -> int:
        changed = sizes | other
        shape = replace(
            shape_of(shape_config("nano")),
            width=changed["hidden_size"],
            query_width=changed["num_attention_heads"] * 16,
            key_width=changed["num_key_value_heads"] * 16,
            inner_width=changed["intermediate_size"],
        )
        return layer_bytes(shape, dtype, adapter=adapter)

    for change in (
        {"hidden_size": 128},
        {"num_attention_heads": 8},
        {"num_key_value_heads": 4},
        {"intermediate_size": 320},
    ):
        assert kept(**change) - kept() == pytest.approx(estimated(**change) - estimated(), rel=0.1)


def _saved(sizes: dict[str, int], dtype: str, adapter: bool) -> float:
    """Bytes a token that the language model's forward pass saves for its backward pass."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = json.loads((TINY_WEIGHTS / "config.json").read_text())
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_theta": 1e4, "rope_type": "default"}
    config["text_config"] |= sizes | {"head_dim": 16, "rope_parameters": rope}
    config["vision_config"]["out_hidden_size"] = sizes["hidden_size"]
    model: Any = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).to(getattr(torch, dtype))
    use_packed_attention(model)
    model.model.visual.requires_grad_(False)
    base = model
    if adapter:
        attach_lora(model, LoraSpec(r=1))
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    tokens = 64
    ids = torch.arange(tokens)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = base.model(
            input_ids=ids,
            position_ids=ids.expand(3, 1, -1),
            use_cache=False,
            **packed_rows([tokens], ids.device),
        )
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del states
    return total / tokens


SHAPE = ModelShape(
    parameters=1000,
    vision=100,
    largest_tensor=200,
    largest_block=50,
    head=0,
    rest=10,
    adapter_per_rank=2,
    layers=3,
    width=8,
    query_width=8,
    key_width=4,
    inner_width=16,
    vocabulary=1,
)


def test_weights_and_optimiser_by_hand() -> None:
    lora = training_memory(SHAPE, TrainingSettings(tokens=1, lora_rank=4))
    assert (lora.weights, lora.trained, lora.gathered) == (2016, 8 * 16, 0)
    assert lora.activations == 3 * 8 * 2 + round(1.4 * (12 * 8 + 10 * 8 + 8 * 4 + 8 * 16))
    # two inputs on the card, all of them in main memory
    offloaded = training_memory(SHAPE, TrainingSettings(tokens=1, lora_rank=4, offloading=True))
    assert lora.activations - offloaded.activations == (3 - 2) * 8 * 2
    assert offloaded.host - lora.host == 3 * 16
    nine = [training_memory(SHAPE, TrainingSettings(tokens=9, offloading=each)).host for each in (False, True)]
    assert nine[1] - nine[0] == 3 * 256  # of 144 bytes: pinned memory is a power of two
    # float32 masters beside the bfloat16 model; the first weights of 900 trained parameters in bfloat16
    full = training_memory(SHAPE, TrainingSettings(tokens=1, lora_rank=None, reference=True))
    assert (full.weights, full.trained, full.reference) == (2000, 900 * 16, 1800)
    # FSDP holds the trained weights in float32 only, and gathers two blocks and the rest
    shards = training_memory(SHAPE, TrainingSettings(tokens=1, lora_rank=None, sharded=True, cards=2))
    assert (shards.weights, shards.trained, shards.gathered) == (100, 7200, 220)


def test_more_cards_take_less_each_only_where_the_model_is_sharded() -> None:
    one, two, four = (training_memory(SHAPE, TrainingSettings(cards=cards, sharded=True)) for cards in (1, 2, 4))
    assert four.weights == two.weights // 2
    assert one == training_memory(SHAPE, TrainingSettings())  # nobody to share with
    assert training_memory(SHAPE, TrainingSettings(cards=2)) == training_memory(SHAPE, TrainingSettings(cards=1))


def test_a_server_keeps_keys_and_values_in_what_is_left() -> None:
    memory = serving_memory(SHAPE, lora_rank=None)
    assert (memory.weights, memory.kv_token) == (2000, 2 * 3 * 4 * 2)
    assert memory.kv_tokens(memory.weights + memory.overhead + 480) == 10
    assert memory.kv_tokens(0) == 0


def test_the_settings_of_a_configuration() -> None:
    config = TrainConfig(backend="areal", phase=3, lora=LoraConfig(enabled=True, r=8))
    settings = training_settings(config, cards=2)
    assert settings == TrainingSettings(
        tokens=4096,
        cards=2,
        sharded=True,
        dtype="float32",
        lora_rank=8,
        checkpointing=False,
        reference=config.loss.kl_coefficient > 0,
        sampling_copy=True,
    )
    assert not training_settings(TrainConfig(backend="legacy")).sharded
