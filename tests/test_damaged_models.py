"""A damaged file of a model or adapter is one line that names it, before a library stumbles over it."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_random

from cua_agent.models.errors import UnsupportedModel
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.sources import find_model
from trainers.run.checkpoint import save_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_random.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    save_weights(directory, load_policy(str(model), lora=LoraSpec(r=4)))
    return directory


def refused(source: Path, name: str, content: bytes, directory: Path) -> str:
    damaged = directory / "damaged"
    shutil.copytree(source, damaged)
    (damaged / name).write_bytes(content)
    with pytest.raises(UnsupportedModel) as refusal:
        find_model(str(damaged))
    return str(refusal.value)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_json_of_a_model(name: str, content: bytes, model: Path, tmp_path: Path) -> None:
    line = refused(model, name, content, tmp_path)
    assert f"damaged/{name} cannot be read: " in line
    assert "\n" not in line


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, b"half"])
def test_tensors_of_a_model_and_of_an_adapter(content: bytes, model: Path, adapter: Path, tmp_path: Path) -> None:
    for source, name in ((model, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        whole = (source / name).read_bytes()
        damaged = whole[: len(whole) // 2] if content == b"half" else content
        assert f"{name} cannot be read: SafetensorError: " in refused(source, name, damaged, tmp_path / name)


def test_figures_of_an_adapter_that_are_no_numbers(adapter: Path, tmp_path: Path) -> None:
    about = json.loads((adapter / "adapter_config.json").read_text()) | {"r": "sixteen"}
    line = refused(adapter, "adapter_config.json", json.dumps(about).encode(), tmp_path)
    assert line.endswith("ValueError: r, lora_alpha and lora_dropout must be numbers")
