"""A checkpoint is gone on with by the kind of policy that it holds, and no other; asked before weights are loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_random
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cua_agent.models.fingerprint import fingerprint
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.sources import TINY_WEIGHTS
from trainers.command import train
from trainers.config import ConfigError, LoraConfig, ModelConfig, TrainConfig
from trainers.protocol import TrainerState
from trainers.run.checkpoint import Optimisation, load_checkpoint, save_checkpoint
from trainers.run.checkpoint_files import CheckpointError
from trainers.run.compatibility import check_fits
from trainers.run.directory import create_run_directory

LORA = LoraConfig(enabled=True, r=4, alpha=8, target_modules=r".*\.layers\..*q_proj")


def parts(base: Path, lora: LoraConfig):
    spec = LoraSpec(lora.r, lora.alpha, lora.dropout, lora.target_modules) if lora.enabled else None
    policy = load_policy(str(base), lora=spec)
    trained = dict(policy.trainable_parameters())
    optimizer = AdamW(trained.values())
    return {"policy": policy, "optimisation": Optimisation(optimizer, LambdaLR(optimizer, lambda _: 1.0), trained)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_random.build(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory) -> dict[str, Path]:
    """Two run directories: one that trained an adapter, one that trained all weights."""
    found = {}
    for name, lora in (("adapter", LORA), ("full", LoraConfig())):
        config = TrainConfig(
            lora=lora, model=ModelConfig(path=str(base)), output_dir=str(tmp_path_factory.mktemp("o")), run_name=name
        )
        found[name] = create_run_directory(config)
        save_checkpoint(found[name] / "checkpoints" / "last", **parts(base, lora), state=TrainerState(step=1))
    return found


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (replace(LORA, alpha=32), ["lora.alpha=32: ", "trained with 8", "allowed: 8"]),
        (replace(LORA, r=2), ["lora.r=2: ", "trained with 4"]),
        (replace(LORA, target_modules=r".*\.layers\..*k_proj"), ["lora.target_modules=", "k_proj: ", "q_proj"]),
        (replace(LORA, enabled=False), ["lora.enabled=false: ", "a LoRA adapter; allowed: true"]),
    ],
)
def test_another_adapter_is_refused_naming_both_values(runs, base: Path, lora: LoraConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check_fits(runs["adapter"] / "checkpoints" / "last", TrainConfig(lora=lora, model=ModelConfig(path=str(base))))
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_what_was_trained_fits_and_its_dropout_may_change(runs, base: Path) -> None:
    for name, lora in (("adapter", LORA), ("adapter", replace(LORA, dropout=0.5)), ("full", LoraConfig())):
        check_fits(runs[name] / "checkpoints" / "last", TrainConfig(lora=lora, model=ModelConfig(path=str(base))))


def test_full_weights_are_no_adapter(runs, base: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.enabled=true: .* holds full weights; allowed: false"):
        check_fits(runs["full"] / "checkpoints" / "last", TrainConfig(lora=LORA, model=ModelConfig(path=str(base))))


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_another_base_of_the_same_shapes_is_refused_and_a_copy_is_not(runs, base: Path, kind: str, tmp_path) -> None:
    last, lora = runs[kind] / "checkpoints" / "last", LORA if kind == "adapter" else LoraConfig()
    copied = Path(shutil.copytree(base, tmp_path / "copied"))
    check_fits(last, TrainConfig(lora=lora, model=ModelConfig(path=str(copied))))
    other = tiny_random.build(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError) as error:
        check_fits(last, TrainConfig(lora=lora, model=ModelConfig(path=str(other))))
    assert f"model.path={other}: another base model (fingerprint {fingerprint(str(other))})" in str(error.value)
    assert f"allowed: {base} (fingerprint {fingerprint(str(base))})" in str(error.value)


def test_an_adapter_without_a_fingerprint_is_known_by_the_base_it_names(runs, base: Path, tmp_path: Path) -> None:
    last = Path(shutil.copytree(runs["adapter"] / "checkpoints" / "last", tmp_path / "last"))
    (last / "base.json").unlink()
    check_fits(last, TrainConfig(lora=LORA, model=ModelConfig(path=str(base))))
    other = tiny_random.build(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="another base model"):
        check_fits(last, TrainConfig(lora=LORA, model=ModelConfig(path=str(other))))


def test_loading_refuses_the_same(runs, base: Path, tmp_path: Path) -> None:
    last = runs["adapter"] / "checkpoints" / "last"
    with pytest.raises(CheckpointError, match=r"with lora.alpha=8, the run has lora.alpha=32"):
        load_checkpoint(last, **parts(base, replace(LORA, alpha=32)))
    with pytest.raises(CheckpointError, match=r"was trained on .* the run is on"):
        load_checkpoint(last, **parts(tiny_random.build(tmp_path / "other", seed=1), LORA))


def test_the_command_refuses_before_anything_is_loaded_and_leaves_nothing(runs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    monkeypatch.setattr("trainers.api.build_trainer", lambda *_: pytest.fail("the model was asked for"))
    before = sorted(runs["adapter"].parent.iterdir())
    assert train.main([f"resume={runs['adapter']}", "lora.alpha=64"]) == 2
    last = runs["adapter"] / "checkpoints" / "last"
    assert capsys.readouterr().err == f"error: lora.alpha=64: checkpoint {last} was trained with 8; allowed: 8\n"
    assert sorted(runs["adapter"].parent.iterdir()) == before


def test_a_fingerprint_does_not_depend_on_the_place_and_is_small_work(tmp_path: Path) -> None:
    copied = shutil.copytree(TINY_WEIGHTS, tmp_path / "tiny")
    assert fingerprint(str(copied)) == fingerprint(str(TINY_WEIGHTS))
    weights = Path(copied) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400_000] = bytes(400_000)
    weights.write_bytes(content)
    assert fingerprint(str(copied)) != fingerprint(str(TINY_WEIGHTS))
    about = json.loads((Path(copied) / "config.json").read_text())
    (Path(copied) / "config.json").write_text(json.dumps({**about, "transformers_version": "9"}))
    assert fingerprint(str(copied)) is not None
    assert fingerprint(str(tmp_path)) is None
