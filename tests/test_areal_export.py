"""The exported YAML: AReaL's own loader reads it back to the configuration that it was made from."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.tiny_random import build
from trainers.config import TrainConfig
from trainers.config.compose import load_config

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "defaults": [],
    "lora": ["lora.enabled=true", "lora.r=4", "loss.kl_coefficient=0.01", "rollout.max_staleness=3"],
    "synchronous": ["rollout.max_staleness=0", "loss.decoupled=false", "advantage.normalise_by_std=false"],
    "schedule": ["max_steps=7", "optim.warmup_steps=3", "checkpoint.every_steps=2", "eval.every_steps=0"],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def no_hydra_left() -> Iterator[None]:
    """AReaL's loader leaves Hydra's global state behind."""
    yield
    GlobalHydra.instance().clear()


def composed(weights: Path, overrides: list[str]) -> TrainConfig:
    return load_config(["backend=areal", f"model.path={weights}", *overrides])


def plain(config: object) -> object:
    """What a configuration says, whether it writes a sequence as a list or as a tuple."""
    return OmegaConf.to_container(OmegaConf.structured(config))


@pytest.mark.parametrize("variant", VARIANTS)
def test_areal_reads_back_what_was_exported(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    from areal.api.cli_args import GRPOConfig, load_expr_config

    from trainers.areal.config.native_yaml import native_config
    from trainers.areal.export import main

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "areal.yaml"
    assert main([f"model.path={weights}", *VARIANTS[variant], "--out", str(file)]) == 0
    loaded, _ = load_expr_config(["--config", str(file)], GRPOConfig)
    GlobalHydra.instance().clear()
    made = native_config(composed(weights, VARIANTS[variant]), Path("outputs/default-seed0"))
    assert plain(loaded) == plain(made)
    assert plain(loaded) != plain(native_config(composed(weights, ["seed=5"]), Path("outputs/default-seed0")))


def test_our_keys_become_areals(weights: Path) -> None:
    from trainers.areal.config.native_yaml import native_config

    overrides = [
        *VARIANTS["lora"],
        *("rollout.group_size=4", "rollout.groups_per_step=6", "rollout.temperature=0.7", "loss.clip_epsilon=0.3"),
        *("optim.learning_rate=0.5", "max_steps=30", "optim.warmup_steps=10", "model.max_length=512"),
    ]
    areal = native_config(composed(weights, overrides), Path("run"))
    assert (areal.gconfig.n_samples, areal.gconfig.temperature) == (4, 0.7)
    assert (areal.rollout.consumer_batch_size, areal.train_dataset.batch_size) == (6, 6)
    assert areal.rollout.max_head_offpolicyness == 3
    assert (areal.actor.eps_clip, areal.actor.kl_ctl, areal.actor.kl_estimator) == (0.3, 0.01, "k3")
    assert areal.actor.optimizer.lr == 0.5
    assert int(areal.actor.optimizer.warmup_steps_proportion * 30) == 10
    assert areal.actor.reward_norm.group_size == 4
    assert (areal.vllm.max_lora_rank, areal.vllm.max_loras, areal.vllm.max_model_len) == (4, 5, 512)
    assert areal.rollout.lora_name == areal.gconfig.lora_name
    assert (areal.ref.use_lora, areal.ref.optimizer) == (False, None)


def test_an_adapters_modules_are_those_of_the_regular_expression(weights: Path) -> None:
    from trainers.areal.config.native_yaml import adapted_modules
    from trainers.components import build_policy

    config = composed(weights, ["lora.enabled=true"])
    names = {name for name, _ in build_policy(config).trainable_parameters()}
    adapted = {re.sub(r"\.lora_[AB]\..*", "", name).removeprefix("base_model.model.") for name in names}
    assert set(adapted_modules(config)) == adapted
    assert len(adapted) == 14  # seven linears in each of two layers


def test_the_file_says_what_areal_does_otherwise(weights: Path) -> None:
    from trainers.areal.config.native_yaml import caveats

    keys = {line.partition(":")[0] for line in caveats(composed(weights, ["loss.kl_coefficient=0.1"]))}
    assert {"loss.kl_coefficient", "model.freeze_vision", "optim.warmup_steps"} <= keys
    quiet = ["inference=vllm", "loader.attn_implementation=flash_attention_2"]
    quiet += ["optim.warmup_steps=0", "model.freeze_vision=false"]
    assert len(caveats(composed(weights, quiet))) == 1


def test_the_command_prints_yaml_only_and_refuses_what_areal_does_not_compute(weights: Path, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "trainers.areal.export", f"model.path={weights}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = command("run_name=mine")
    assert done.returncode == 0
    assert OmegaConf.create(done.stdout).cluster.fileroot == "outputs/mine/areal"
    refused = command("loss.kind=policy_gradient")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: loss.kind=policy_gradient: allowed with backend=areal phase=3: ppo_clip, sapo (phases 1 and 2 take it)"
    ]
