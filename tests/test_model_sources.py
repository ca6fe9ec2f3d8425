"""Where a model comes from: names that lead there from anywhere, and weights that cannot be trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_random

from cua_agent.models.errors import ModelError, ModelNotFound, UnsupportedModel
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.sources import ADAPTERS_ON, check_trainable, find_model
from trainers.components import build_policy
from trainers.config import ConfigError, from_mapping
from trainers.run.checkpoint import save_weights


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)


def base_named_in(directory: Path) -> str:
    name: str = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    return name


def test_an_adapter_on_a_relative_path_loads_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_random.build_text(Path("models/base"))
    saved = tmp_path / "saved"
    saved.mkdir()
    save_weights(saved, load_policy("models/base", lora=LoraSpec(r=2)))
    assert base_named_in(saved) == str(tmp_path / "models" / "base")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_policy(str(saved)).has_adapter


def test_an_adapter_that_named_a_relative_path_names_an_absolute_one_when_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_random.build_text(Path("models/base"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    save_weights(tmp_path / "first", load_policy("models/base", lora=LoraSpec(r=2)))
    about = tmp_path / "first" / "adapter_config.json"
    about.write_text(about.read_text().replace(str(tmp_path / "models"), "models"))
    assert base_named_in(tmp_path / "first") == "models/base"
    save_weights(tmp_path / "second", load_policy("first"))
    assert base_named_in(tmp_path / "second") == str(tmp_path / "models" / "base")


def test_built_in_models_are_named_by_their_name(tmp_path: Path) -> None:
    save_weights(tmp_path, load_policy("tiny", lora=LoraSpec(r=2)))
    assert base_named_in(tmp_path) == "tiny"


@pytest.mark.parametrize("path", ["models/bsae", "./models", "../base", "/no/such", "models/base/", "~/no-such/x/y"])
def test_what_reads_like_a_path_is_never_looked_up_at_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelNotFound) as caught:
        find_model(path)
    assert "\n" not in str(caught.value)


def test_offline_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="offline") as caught:
        find_model("no-such-organisation/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_hub_that_answers_at_length_stays_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> None:
        raise OSError("Cannot reach the hub: " + "x" * 1000 + "\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    with pytest.raises(ModelNotFound, match="the hub answered: Cannot reach the hub") as caught:
        find_model("no-such-organisation/no-such-model")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 290


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"adapter_config\.json") as caught:
        find_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_error_about_a_missing_base_names_adapter_and_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base"}')
    with pytest.raises(ModelNotFound, match=r"names the base model '/gone/base': no such directory") as caught:
        find_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_directory_without_weights_is_one_line(tmp_path: Path) -> None:
    base = tiny_random.build_text(tmp_path / "base")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_policy(str(base))
    assert "\n" not in str(caught.value)
    (base / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_policy(str(base))


def quantised(directory: Path, method: str, *, nested: bool = False) -> Path:
    """A checkpoint whose configuration says that its weights are quantised."""
    base = tiny_random.build(directory) if nested else tiny_random.build_text(directory)
    config = json.loads((base / "config.json").read_text())
    (config["text_config"] if nested else config)["quantization_config"] = {"quant_method": method, "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()  # whoever reads weights before refusing fails
    return base


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_quantised_weights_are_refused_for_full_training_before_they_are_read(
    method: str, nested: bool, tmp_path: Path
) -> None:
    base = quantised(tmp_path / "base", method, nested=nested)
    observation = "screenshot" if nested else "text"
    config = from_mapping({"model": {"path": str(base), "observation": observation}, "backend": "legacy"})
    with pytest.raises(UnsupportedModel, match=f"quantization_config: {method} weights") as caught:
        build_policy(config)
    message = str(caught.value)
    assert ("lora.enabled=true" in message) == (method in ADAPTERS_ON)
    assert "\n" not in message


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "quark", "bitsandbytes", "gptq", "awq"])
def test_adapters_are_trained_on_what_peft_can_adapt(method: str, tmp_path: Path) -> None:
    source = find_model(str(quantised(tmp_path / "base", method)))
    if method in ADAPTERS_ON:
        check_trainable("x", source, adapter=True)
        return
    with pytest.raises(UnsupportedModel, match=r"no adapter can be trained; allowed: .*before it was quantised"):
        check_trainable("x", source, adapter=True)


def test_sharding_quantised_weights_is_refused(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "bitsandbytes")
    tree: dict[str, object] = {"model": {"path": str(base), "observation": "text"}, "lora": {"enabled": True}}
    with pytest.raises(ConfigError, match="cannot shard quantised weights; set phase=1 or backend=legacy"):
        build_policy(from_mapping(tree))


def test_a_package_that_quantised_weights_need_is_named(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "gptq")
    with pytest.raises(ModelError, match="optimum"):
        load_policy(str(base), lora=LoraSpec(r=2))
