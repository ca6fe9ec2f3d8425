"""Adapters that vLLM cannot serve are refused before a model is loaded, in one line that names the option."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny_random
from fastapi import FastAPI
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model

from cua_agent.exit_status import BAD_CONFIGURATION
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.errors import ServerMismatch
from cua_agent.inference.vllm.servable import check_servable
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LANGUAGE_MODEL_LINEARS
from cua_agent.models.sources import find_model
from tests.vllm_fakes import plan, served, server_info
from trainers.command.train import main


@cache
def checkpoint() -> str:
    return str(tiny_random.build(Path(mkdtemp())))


def saved(directory: Path, config: PeftConfig) -> Path:
    """An adapter of the tiny model, as peft writes it."""
    model: Any = load_policy(checkpoint()).model
    get_peft_model(model, config).save_pretrained(str(directory))
    return directory


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"]} | options)


UNSERVABLE = {
    "use_dora=true": lora(use_dora=True),
    'modules_to_save=["lm_head"]': lora(modules_to_save=["lm_head"]),
    'rank_pattern={"q_proj": 8}': lora(rank_pattern={"q_proj": 8}),
    'alpha_pattern={"q_proj": 8}': lora(alpha_pattern={"q_proj": 8}),
    "bias=lora_only": lora(bias="lora_only"),
    "lora_bias=true": lora(lora_bias=True),
    "trainable_token_indices": lora(trainable_token_indices=[1, 2]),
    "init_lora_weights=olora": lora(init_lora_weights="olora"),
    "target_modules with lm_head": lora(target_modules=["q_proj", "lm_head"]),
    "target_modules with model.language_model.embed_tokens": lora(target_modules=["q_proj", "embed_tokens"]),
    "peft_type=IA3": IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "r=520 (at most 512)": lora(r=520, target_modules=r".*language_model\.layers\.0\..*q_proj"),
}


@pytest.mark.parametrize(("option", "config"), UNSERVABLE.items(), ids=UNSERVABLE)
def test_what_vllm_cannot_serve_is_refused_by_name(option: str, config: PeftConfig, tmp_path: Path) -> None:
    source = find_model(str(saved(tmp_path / "adapter", config)))
    with pytest.raises(ServerMismatch) as caught:
        check_servable(source, rank=None, target_modules="")
    message = str(caught.value)
    assert f"{tmp_path / 'adapter'}: its adapter has {option}" in message
    assert "inference=local" in message
    assert "\n" not in message


@pytest.mark.parametrize("config", [lora(), lora(use_rslora=True), lora(init_lora_weights="gaussian")])
def test_plain_adapters_are_served(config: LoraConfig, tmp_path: Path) -> None:
    check_servable(find_model(str(saved(tmp_path, config))), rank=None, target_modules="")


@pytest.mark.parametrize(
    ("rank", "targets", "words"),
    [
        (513, LANGUAGE_MODEL_LINEARS, "lora.r=513 (at most 512)"),
        (4, r".*(q_proj|lm_head)", "lora.target_modules=.*(q_proj|lm_head) with lm_head"),
        (4, r".*embed_tokens", "with model.language_model.embed_tokens"),
        (4, r".*patch_embed.proj", "with model.visual.patch_embed"),
    ],
)
def test_a_fresh_adapter_that_it_cannot_serve_is_refused_by_its_key(rank: int, targets: str, words: str) -> None:
    with pytest.raises(ServerMismatch) as caught:
        check_servable(find_model(checkpoint()), rank, targets)
    assert words in str(caught.value)


def test_plain_adapters_and_full_weights_may_be_trained() -> None:
    check_servable(find_model(checkpoint()), 512, LANGUAGE_MODEL_LINEARS)
    check_servable(find_model(checkpoint()), None, ".*")


def test_an_adapted_vision_tower_needs_its_flag() -> None:
    from dataclasses import replace

    from cua_agent.inference.vllm.plan import check_server

    sees = replace(plan(), adapts_vision=True)
    with pytest.raises(ServerMismatch, match="--enable-tower-connector-lora"):
        check_server("http://box", server_info(), sees)
    lora_config = {"max_lora_rank": 8, "max_loras": 2, "enable_tower_connector_lora": True}
    check_server("http://box", server_info(lora=lora_config), sees)


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_the_command_refuses_it_with_status_2_before_it_loads_or_asks_a_server(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = saved(tmp_path / "adapter", lora(use_dora=True))
    monkeypatch.setattr("trainers.components.load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    words = [f"backend={backend}", "inference=vllm", f"model={adapter}", f"output_dir={tmp_path / 'out'}"]
    assert main(words) == BAD_CONFIGURATION
    (line,) = capsys.readouterr().err.splitlines()
    assert "use_dora=true" in line
    assert not any((tmp_path / "out").iterdir())


def test_a_server_of_another_dtype_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = FastAPI()
    app.get("/server_info")(lambda: server_info(dtype="torch.bfloat16"))
    monkeypatch.setattr("trainers.components.load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with served(app) as url:
        words = ["inference=vllm", f"inference.servers=[{url}]", "lora.enabled=true", f"output_dir={tmp_path / 'out'}"]
        assert main(words) == BAD_CONFIGURATION
    (line,) = capsys.readouterr().err.splitlines()
    assert "serves bfloat16, the trainer's model.dtype is float32: set model.dtype=bfloat16" in line
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_with_more_gaps_than_vllm_bans_is_refused_before_it_ends_the_server() -> None:
    policy = load_policy(checkpoint())
    many = replace(policy.special, banned=tuple(range(1025)))
    with pytest.raises(
        ServerMismatch, match=r"^model\.path=.*: 1025 ids of its vocabulary are never sampled.* 1024 at"
    ):
        serving_plan(replace(policy, special=many), max_length=512, max_images=4, max_staleness=0)
