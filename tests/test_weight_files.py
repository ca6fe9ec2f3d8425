"""Weights that are read one at a time are those that a whole load gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from cua_agent.models.architecture import empty_model
from cua_agent.models.errors import UnsupportedModel
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.weight_files import WeightFiles
from tests.tiny_random import build, build_text


def _checkpoint(kind: str, directory: Path) -> Path:
    if kind in ("qwen3_vl", "qwen2_5_vl"):
        return build(directory, kind)  # type: ignore[arg-type]
    if kind in ("llama", "qwen3"):
        return build_text(directory, kind)  # type: ignore[arg-type]
    whole = AutoModelForImageTextToText.from_pretrained(build(directory, tied=kind != "untied"))
    if kind == "cut into files":
        (directory / "model.safetensors").unlink()
        whole.save_pretrained(directory, max_shard_size="20KB")
        assert len(list(directory.glob("*.safetensors"))) > 3
    return directory


def _assert_same(read: nn.Module, files: WeightFiles, whole: nn.Module) -> None:
    expected = dict(whole.named_parameters())
    wanted = {name: slice(None) for name, _ in read.named_parameters()}
    assert wanted.keys() == expected.keys()
    given = dict(files.read(wanted))
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    some = dict(files.read(dict.fromkeys(wanted, slice(1, 3))))
    assert all(torch.equal(tensor, expected[name][1:3]) for name, tensor in some.items())


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl", "llama", "qwen3", "untied", "cut into files"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_bitwise_those_of_a_whole_load(kind: str, dtype: str, tmp_path: Path) -> None:
    path = str(_checkpoint(kind, tmp_path))
    unread, whole = (load_policy(path, dtype=dtype, unread=unread) for unread in (True, False))
    assert unread.unread is not None
    assert all(parameter.is_meta for parameter in unread.model.parameters())
    _assert_same(unread.model, unread.unread.files, whole.model)
    for (name, own), (_, other) in zip(unread.model.named_buffers(), whole.model.named_buffers(), strict=True):
        assert torch.equal(own, other), name  # no file has them
    generation: Any = unread.model.generation_config
    assert generation.to_dict() == whole.model.generation_config.to_dict()  # type: ignore[union-attr,operator]
    assert unread.special == whole.special


def test_experts_that_files_keep_one_by_one(tmp_path: Path) -> None:
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]})
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path)
    whole = Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path)
    empty = empty_model(whole.config, dtype=torch.float32)
    _assert_same(empty, WeightFiles(str(tmp_path), empty), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_begins_as_on_a_whole_model(dtype: str, tmp_path: Path) -> None:
    path = str(build(tmp_path))
    spec = LoraSpec(r=4, seed=7)
    unread, whole = (load_policy(path, dtype=dtype, lora=spec, unread=unread) for unread in (True, False))
    own, other = (dict(policy.trainable_parameters()) for policy in (unread, whole))
    assert own.keys() == other.keys()
    for name, parameter in own.items():
        assert parameter.dtype == other[name].dtype
        assert torch.equal(parameter, other[name]), name
    frozen = [parameter for name, parameter in unread.model.named_parameters() if name not in own]
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in frozen)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    base = load_policy(str(build(tmp_path)), lora=LoraSpec(r=4), unread=True).base_model
    assert base.get_input_embeddings().weight is base.lm_head.weight


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    path = build(tmp_path)
    weights: dict[str, Tensor] = load_file(path / "model.safetensors")
    lost = next(name for name in weights if "q_proj" in name)
    del weights[lost]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"1 weights are missing, .*q_proj"):
        load_policy(str(path), unread=True)


@pytest.mark.parametrize("broken", ["torn", "gone", "index"])
def test_files_that_cannot_be_read_are_named(broken: str, tmp_path: Path) -> None:
    file = build(tmp_path) / "model.safetensors"
    if broken == "torn":
        file.write_bytes(file.read_bytes()[:100])
    elif broken == "gone":
        file.unlink()
    else:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({}))
    with pytest.raises(UnsupportedModel, match=r"cannot be (read|loaded)"):
        load_policy(str(tmp_path), unread=True)


def test_only_one_loader_leaves_weights_unread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loader=peft"):
        load_policy(str(build(tmp_path)), loader="unsloth", lora=LoraSpec(), unread=True)
