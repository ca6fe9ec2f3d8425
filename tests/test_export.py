"""Merged exports: plain directories that compute what the adapted model computed."""

from pathlib import Path

import pytest
import tiny_random
import torch

from cua_agent.models.export import ExportError, export, main
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
    assert "adapter merged into its base" in capsys.readouterr().out
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
