"""Merged exports: plain directories that compute what the adapted model computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_random
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from cua_agent.models import loaders
from cua_agent.models.errors import UnsupportedModel
from cua_agent.models.export import ExportDiffers, ExportError, export, find_weights, main
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from trainers.run.checkpoint import save_weights


def logits(policy: PolicyModel) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = policy.model(input_ids=torch.tensor([policy.encode("Settings: Wi-Fi on")])).logits
    return result


def trained_adapter(directory: Path, family: str) -> PolicyModel:
    base = directory / "base"
    build = tiny_random.build_text if family == "llama" else tiny_random.build
    policy = load_policy(str(build(base, family)), lora=LoraSpec(r=4))  # type: ignore[arg-type,operator]
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.05)
    checkpoint = directory / "run" / "checkpoints" / "best"
    checkpoint.mkdir(parents=True)
    save_weights(checkpoint, policy)
    return policy


@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_a_merged_model_computes_the_same_without_an_adapter(family: str, tmp_path: Path) -> None:
    policy = trained_adapter(tmp_path, family)
    done = export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    again = load_policy(str(tmp_path / "merged"))
    assert done.merged
    assert not again.has_adapter
    assert not list((tmp_path / "merged").glob("adapter*"))
    torch.testing.assert_close(logits(again), logits(policy), rtol=1e-4, atol=1e-4)


def test_all_weights_are_exported_as_they_are(tmp_path: Path) -> None:
    base = tiny_random.build(tmp_path / "base")
    done = export(base, tmp_path / "out")
    assert not done.merged
    again = load_policy(str(tmp_path / "out"), dtype="bfloat16")
    assert again.reads_images
    torch.testing.assert_close(logits(again), logits(load_policy(str(base), dtype="bfloat16")))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_adapter(tmp_path, "llama")
    arguments = [f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'merged'}"]
    assert main(arguments) == 0
    assert "adapter merged into its base; read back, it computes what was trained" in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: out={tmp_path / 'merged'}: exists already; allowed: a new directory\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["checkpoint=/no/such", "out=/tmp/no-such-out"], "no weights there"),
        (["checkpiont=x"], "no such key; allowed: checkpoint, out, dtype"),
        (["out=x"], "checkpoint: "),
        (["checkpoint=x", "out=y", "dtype=float16"], "dtype: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no weights there"):
        export(tmp_path, tmp_path / "out")


def test_a_run_directory_means_its_best_weights_and_no_others(tmp_path: Path) -> None:
    for name in ("best", "last"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / "config.json").write_text("{}")
    best, last = tmp_path / "run" / "checkpoints" / "best", tmp_path / "run" / "checkpoints" / "last"
    assert find_weights(tmp_path / "run") == best
    (best / "config.json").unlink()
    with pytest.raises(ExportError, match="no weights in") as error:
        find_weights(tmp_path / "run")
    assert str(error.value).endswith(f"{best}; allowed: {last}")


def adapter_of_any_kind(directory: Path, family: str, **options: Any) -> PolicyModel:
    """The policy of an adapter that peft itself made and saved, as a user may bring it."""
    build = tiny_random.build_text if family == "llama" else tiny_random.build
    policy = load_policy(str(build(directory / "base", family)))  # type: ignore[arg-type,operator]
    adapted = get_peft_model(policy.model, LoraConfig(r=4, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    adapted.save_pretrained(str(directory / "adapter"))
    return load_policy(str(directory / "adapter"))


HEAD, EMBEDDING, BOTH = [".*lm_head", ".*embed_tokens", ".*(lm_head|embed_tokens|q_proj)"]
Q = ["q_proj"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
@pytest.mark.parametrize(
    ("options", "tied"),
    [
        ({"target_modules": Q}, True),
        ({"target_modules": HEAD}, False),
        ({"target_modules": EMBEDDING}, False),
        ({"target_modules": BOTH}, False),
        ({"target_modules": Q, "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": Q, "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": Q, "use_dora": True}, True),
        ({"target_modules": Q, "use_rslora": True, "rank_pattern": {"q_proj": 2}}, True),
    ],
    ids=["plain", "head", "embedding", "both", "saved-head", "saved-embedding", "dora", "rslora"],
)
def test_an_adapter_of_any_kind_on_tied_embeddings_is_exported_as_it_computes(
    family: str, options: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    policy = adapter_of_any_kind(tmp_path, family, **options)
    export(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    plain = (AutoModelForCausalLM if family == "llama" else AutoModelForImageTextToText).from_pretrained(
        tmp_path / "out"
    )
    assert plain.config.tie_word_embeddings is tied
    with torch.no_grad():
        theirs = plain(input_ids=torch.tensor([policy.encode("Settings: Wi-Fi on")])).logits
    torch.testing.assert_close(theirs, logits(policy), rtol=1e-4, atol=1e-4)


def test_a_model_that_was_written_wrong_is_found_out_and_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_adapter(tmp_path, "llama")
    load = loaders.load_policy

    def tampered(path: str, **keys: Any) -> PolicyModel:
        if Path(path).name == ".out.new":
            weights = load_file(Path(path) / "model.safetensors")
            weights["model.norm.weight"] += 0.01
            save_file(weights, Path(path) / "model.safetensors", metadata={"format": "pt"})
        return load(path, **keys)

    monkeypatch.setattr(loaders, "load_policy", tampered)
    with pytest.raises(ExportDiffers, match="reading back what was written changed the model: its logits differ by"):
        export(tmp_path / "run", tmp_path / "out")
    assert main([f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}


def test_vision_weights_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = loaders.load_policy

    def blind(path: str, **keys: Any) -> PolicyModel:
        policy = load(path, **keys)
        if Path(path).name == ".out.new":
            torch.nn.init.zeros_(policy.base_model.model.visual.merger.linear_fc2.weight)
        return policy

    monkeypatch.setattr(loaders, "load_policy", blind)
    with pytest.raises(ExportDiffers):
        export(tiny_random.build(tmp_path / "base"), tmp_path / "out")


def test_rounding_is_told(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "qwen3_vl")
    assert export(tmp_path / "run", tmp_path / "exact", dtype="float32").rounding < 1e-4
    assert 1e-4 < export(tmp_path / "run", tmp_path / "rounded").rounding < 0.1


def test_what_the_base_says_about_generation_is_kept(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "llama")
    (tmp_path / "base" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7, "top_k": 20}')
    export(tmp_path / "run", tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_k"]) == (0.7, 20)


def test_what_transformers_refuses_to_save_is_one_line(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "llama")
    (tmp_path / "base" / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    with pytest.raises(UnsupportedModel, match=r"its generation_config.json cannot be saved.*temperature") as caught:
        export(tmp_path / "run", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_quantised_weights_is_not_merged(tmp_path: Path) -> None:
    trained_adapter(tmp_path, "llama")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"has bitsandbytes weights, which are not exact enough to merge"):
        export(tmp_path / "run", tmp_path / "out")
