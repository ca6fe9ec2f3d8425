import json
import random
import shutil

import numpy as np
import pytest
import tiny_random
import torch
from policy_rows import ragged_batch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens
from trainers.grpo.gradients import accumulate_gradients
from trainers.protocol import TrainerState
from trainers.run import checkpoint, checkpoint_files
from trainers.run.checkpoint import Optimisation, load_checkpoint, save_checkpoint, save_weights
from trainers.run.checkpoint_files import (
    CheckpointError,
    latest_checkpoint,
    prune_checkpoints,
    read_state,
    verify_checkpoint,
)

STATE = TrainerState(step=3, policy_version=3, data_position=24, best_success=0.75, best_step=2, staleness_max=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_random.build(tmp_path_factory.mktemp("model")))


class Run:
    """A policy with optimiser and scheduler, as a trainer has them."""

    def __init__(self, base, lora=None, seed=0):
        self.policy = load_policy(base, lora=LoraSpec(r=lora, alpha=8, seed=seed) if lora else None)
        self.optimizer = torch.optim.AdamW([p for _, p in self.policy.trainable_parameters()], lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 10))

    @property
    def parts(self):
        trained = dict(self.policy.trainable_parameters())
        return {"policy": self.policy, "optimisation": Optimisation(self.optimizer, self.scheduler, trained)}

    def train(self, steps):
        batch = ragged_batch(self.policy)
        for _ in range(steps):
            self.optimizer.zero_grad()
            accumulate_gradients(self.policy, batch, LossConfig(), temperature=1.0, micro_batch_tokens=300)
            self.optimizer.step()
            self.scheduler.step()
        return self

    def weights(self):
        return {name: p.detach().clone() for name, p in self.policy.trainable_parameters()}


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("lora", [None, 4])
def test_a_resumed_run_continues_exactly(base, tmp_path, lora):
    run = Run(base, lora).train(2)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    save_checkpoint(tmp_path / "c", **run.parts, state=STATE)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    run.train(2)

    resumed = Run(base, lora, seed=1)
    assert load_checkpoint(tmp_path / "c", **resumed.parts) == STATE
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    assert resumed.scheduler.get_last_lr() == [pytest.approx(3e-3)]
    assert_equal_weights(resumed.train(2).weights(), run.weights())


def test_optimiser_state_goes_by_parameter_name(base, tmp_path):
    run = Run(base, 4).train(2)
    save_checkpoint(tmp_path / "c", **run.parts, state=STATE)
    other = Run(base, 4)
    names, parameters = zip(*reversed(other.policy.trainable_parameters()), strict=True)
    optimizer = torch.optim.AdamW(parameters, lr=1.0)
    optimisation = Optimisation(optimizer, other.scheduler, dict(zip(names, parameters, strict=True)))
    load_checkpoint(tmp_path / "c", policy=other.policy, optimisation=optimisation)
    expected = dict(run.policy.trainable_parameters())
    for name, parameter in zip(names, parameters, strict=True):
        torch.testing.assert_close(
            optimizer.state[parameter]["exp_avg"], run.optimizer.state[expected[name]]["exp_avg"], rtol=0, atol=0
        )


def test_exported_full_weights_load_as_a_model(base, tmp_path):
    run = Run(base).train(1)
    save_weights(tmp_path, run.policy)
    loaded = load_policy(str(tmp_path))
    assert_equal_weights({n: p.detach() for n, p in loaded.trainable_parameters()}, run.weights())
    assert loaded.encode("a<|im_end|>") == run.policy.encode("a<|im_end|>")
    assert loaded.special == run.policy.special
    assert loaded.image_tokens(64, 96) == run.policy.image_tokens(64, 96)


def test_exported_adapter_loads_as_a_model_on_the_base_it_names(base, tmp_path):
    run = Run(base, 4).train(1)
    save_weights(tmp_path, run.policy)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    loaded = load_policy(str(tmp_path))
    assert_equal_weights({n: p.detach() for n, p in loaded.trainable_parameters()}, run.weights())
    micro = next(micro_batches(run.policy, ragged_batch(run.policy), LossConfig(), 10_000))
    scores = [score_tokens(policy, micro, 1.0).logprobs for policy in (run.policy, loaded, load_policy(base))]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-6)
    assert (scores[0] - scores[2]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(path, **Run(base, 4).train(1).parts, state=STATE)
    return path


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "rng.pt", "trainer_state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_refused_in_one_line_and_changes_nothing(base, saved, tmp_path, name, damage):
    path = tmp_path / "c"
    shutil.copytree(saved, path)
    data = bytearray((path / name).read_bytes())
    if damage == "remove":
        (path / name).unlink()
    else:
        data[len(data) // 2] ^= 0x80
        (path / name).write_bytes(data[:-10] if damage == "cut" else data)
    run = Run(base, 4)
    before = run.weights()
    with pytest.raises(CheckpointError, match=str(path)) as error:
        load_checkpoint(path, **run.parts)
    assert "\n" not in str(error.value)
    assert_equal_weights(run.weights(), before)


def test_an_untouched_checkpoint_verifies_and_holds_no_pickled_code(saved):
    verify_checkpoint(saved)
    for name in ("optimizer.pt", "rng.pt"):
        torch.load(saved / name, weights_only=True)


def test_another_kind_of_policy_is_refused(base, saved):
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter, the run trains full weights"):
        load_checkpoint(saved, **Run(base).parts)
    with pytest.raises(CheckpointError, match=r"adapter of another shape: compare lora.r"):
        load_checkpoint(saved, **Run(base, 8).parts)


def test_an_interrupted_write_leaves_the_former_checkpoint(base, tmp_path, monkeypatch):
    run = Run(base, 4)
    save_checkpoint(tmp_path / "c", **run.parts, state=TrainerState(step=1))
    for module, function in (
        (checkpoint, "_rng_state"),
        (checkpoint_files, "_seal"),
        (checkpoint_files, "_move_into_place"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                save_checkpoint(tmp_path / "c", **run.parts, state=TrainerState(step=2))
        assert read_state(tmp_path / "c").step == 1
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
    save_checkpoint(tmp_path / "c", **run.parts, state=TrainerState(step=2))
    assert read_state(tmp_path / "c").step == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_latest_skips_broken_ones(base, tmp_path):
    run = Run(base, 4)
    assert latest_checkpoint(tmp_path / "nothing") is None
    for step in (1, 2, 10):
        save_checkpoint(tmp_path / f"step_{step}", **run.parts, state=TrainerState(step=step))
    assert latest_checkpoint(tmp_path) == tmp_path / "step_10"
    (tmp_path / "step_10" / "optimizer.pt").write_bytes(b"torn")
    (tmp_path / "step_2" / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1"


def test_latest_finds_one_that_had_just_stepped_aside(base, tmp_path):
    save_checkpoint(tmp_path / "last", **Run(base, 4).parts, state=STATE)
    (tmp_path / "last").rename(tmp_path / ".last.former")  # killed between the two renames
    assert latest_checkpoint(tmp_path) == tmp_path / ".last.former"
    save_checkpoint(tmp_path / "last", **Run(base, 4).parts, state=STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_pruning_keeps_the_newest_periodic_ones_besides_best_and_last(base, tmp_path):
    run = Run(base, 4)
    for name, step in (("best", 1), ("step_1", 1), ("step_2", 2), ("step_3", 3), ("step_10", 10), ("last", 10)):
        save_checkpoint(tmp_path / name, **run.parts, state=TrainerState(step=step))
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step_10", "step_3"]
    prune_checkpoints(tmp_path, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step_10"]


def test_new_settings_of_the_optimiser_take_effect_and_the_moments_are_kept(base, tmp_path):
    run = Run(base, 4).train(2)
    save_checkpoint(tmp_path / "c", **run.parts, state=STATE)
    other = Run(base, 4)
    trained = dict(other.policy.trainable_parameters())
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-6, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    load_checkpoint(tmp_path / "c", policy=other.policy, optimisation=Optimisation(optimizer, scheduler, trained))
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-5, 0.3)
    assert group["lr"] == scheduler.get_last_lr()[0] == pytest.approx(1e-6 * 3 / 4)
    scheduler.step()
    assert group["lr"] == pytest.approx(1e-6)
    saved = dict(run.policy.trainable_parameters())
    for name, parameter in trained.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(
                optimizer.state[parameter][key], run.optimizer.state[saved[name]][key], rtol=0, atol=0
            )


def reseal(path, **changes):
    """Change the state of a checkpoint so that its checksums are right."""
    state = json.loads((path / "trainer_state.json").read_text())
    (path / "trainer_state.json").write_text(json.dumps({**state, **changes}))
    checkpoint_files._seal(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": "x"}, "step=x: "),
        ({"staleness_max": 0.5}, "staleness_max=0.5: "),
        ({"data_position": -1}, "data_position=-1: it must be at least 0"),
        ({"colour": 1}, "unknown keys: colour"),
    ],
)
def test_a_state_that_is_none_is_refused(saved, tmp_path, changes, words):
    shutil.copytree(saved, tmp_path / "c")
    (tmp_path / "c" / "manifest.json").unlink()
    reseal(tmp_path / "c", **changes)
    verify_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=words) as error:
        read_state(tmp_path / "c")
    assert "\n" not in str(error.value)


def test_a_state_without_a_younger_field_takes_its_default(saved, tmp_path):
    values = json.loads((saved / "trainer_state.json").read_text())
    (tmp_path / "trainer_state.json").write_text(json.dumps({k: v for k, v in values.items() if k != "wall_s"}))
    assert read_state(tmp_path) == STATE
