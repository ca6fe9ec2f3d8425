"""The checkpoints of home-grown trainers: an adapter and `training_state.json`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.tiny_random import build
from trainers.command import train
from trainers.config import LoraConfig, TrainConfig
from trainers.protocol import TrainerState
from trainers.run.checkpoint import Optimisation, load_checkpoint, save_weights
from trainers.run.checkpoint_files import CheckpointError
from trainers.run.old_checkpoint import read_old_state, with_adapter_of
from trainers.run.resuming import described, starting_point

SPEC = LoraSpec(r=3, alpha=6, target_modules=r"(.*\.)?(k_proj|q_proj)")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As peft and a loop of one's own leave it: modules as a list, a few keys of state."""
    directory = tmp_path_factory.mktemp("old") / "checkpoint-120"
    directory.mkdir()
    policy = load_policy(str(base), lora=SPEC)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.25)
    save_weights(directory, policy)
    about = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**about, "target_modules": ["q_proj", "k_proj"]}))
    state(directory, global_step=120, best_accuracy=0.75, best_step=100, config={"model_name": "x"})
    return directory


def state(directory: Path, **values: Any) -> None:
    (directory / "training_state.json").write_text(json.dumps(values))


def test_weights_step_and_best_are_taken(base: Path, saved: Path) -> None:
    policy = load_policy(str(base), lora=SPEC)
    trained = dict(policy.trainable_parameters())
    optimizer = AdamW(trained.values())
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimisation = Optimisation(optimizer, LambdaLR(optimizer, lambda _: 1.0), trained)
    loaded = load_checkpoint(saved, policy=policy, optimisation=optimisation)
    assert loaded == TrainerState(step=120, policy_version=120, best_success=0.75, best_step=100)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), before[name] + 0.25, rtol=0, atol=1e-6)
    assert not optimizer.state


def test_the_run_gets_the_adapters_shape(saved: Path) -> None:
    config, said = with_adapter_of(TrainConfig(), saved)
    assert config.lora == LoraConfig(enabled=True, r=3, alpha=6, target_modules=SPEC.target_modules)
    assert said[:2] == ["lora.enabled: False -> True", "lora.r: 16 -> 3"]


def test_it_can_be_gone_on_from_again_until_there_is_a_new_checkpoint(saved: Path, tmp_path: Path) -> None:
    start = starting_point(str(saved))
    assert (start.checkpoint, start.state.step) == (saved, 120)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "run.json").write_text(json.dumps(described(start)))
    assert starting_point(str(tmp_path)).checkpoint == saved


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "has no step; allowed: one of step, global_step"),
        ({"step": "x"}, "step=x; allowed: a number"),
        ({"step": True}, "step=True; allowed: a number"),
        ({"step": -1}, "step -1; allowed: an integer, >= 0"),
        ({"step": 1.5}, "step 1.5; allowed: an integer"),
        ({"step": float("inf")}, "step=inf; allowed: a number"),
        ({"step": 3, "best_accuracy": [1]}, "best_accuracy=[1]; allowed: a number"),
        ({"step": 3, "best_accuracy": 75.0}, "best result 75.0; allowed: a share, 0 to 1"),
        ({"step": float("nan")}, "step=nan; allowed: a number"),
    ],
)
def test_a_state_that_is_none_is_one_line(saved: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    shutil.copytree(saved, tmp_path / "c")
    state(tmp_path / "c", **values)
    with pytest.raises(CheckpointError) as error:
        read_old_state(tmp_path / "c")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training_state.json", b"[1]", "training_state.json holds no keys"),
        ("training_state.json", b"{", "training_state.json cannot be read"),
        ("adapter_model.safetensors", None, "adapter_model.safetensors is missing"),
        ("adapter_model.safetensors", b"torn", "cannot be read"),
        ("adapter_config.json", b"{}", "holds no plain LoRA adapter"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "cannot be read"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line_before_anything_is_loaded(
    saved: Path, tmp_path: Path, name: str, content: bytes | None, words: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    shutil.copytree(saved, tmp_path / "c")
    if content is None:
        (tmp_path / "c" / name).unlink()
    else:
        (tmp_path / "c" / name).write_bytes(content)
    assert train.main([f"resume={tmp_path / 'c'}", f"output_dir={tmp_path / 'outputs'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
