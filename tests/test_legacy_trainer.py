"""The synchronous trainer as a whole: what a run does and leaves behind."""

import json
import os
import re
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.tasks import seed_for
from tests.legacy_rig import CONFIG, TASKS, MakeRig
from trainers.config import (
    CheckpointConfig,
    EvalConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
)
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import Batch, EpisodeSpec
from trainers.run import interrupts
from trainers.run.checkpoint_files import CheckpointError, verify_checkpoint
from trainers.run.resuming import find_checkpoint

pytestmark = pytest.mark.slow


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_what_the_contract_names(make_rig: MakeRig) -> None:
    rig = make_rig()
    result = rig.trainer.train()
    assert (result.steps, result.stop_reason, result.staleness_max) == (2, "max_steps", 0)
    assert [row["step"] for row in rig.rows()] == [1, 2]
    assert [(row["split"], row["step"]) for row in rig.rows("eval.jsonl")] == [
        ("seeds", 0),
        ("templates", 0),
        ("seeds", 2),
        ("templates", 2),
    ]
    summary = json.loads((rig.directory / "summary.json").read_text())
    assert (summary["backend"], summary["phase"], summary["seed"], summary["steps"]) == ("legacy", None, 0, 2)
    rates = [row["success_rate"] for row in rig.rows("eval.jsonl")]
    assert [summary[f"eval_success_{what}"] for what in ("start", "end", "templates")] == [rates[0], *rates[2:]]
    verify_checkpoint(rig.directory / "checkpoints" / "best")
    verify_checkpoint(rig.directory / "checkpoints" / "last")


def test_the_rows_figures_describe_the_step(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.trainer.train()
    for step, row in enumerate(rig.rows(), start=1):
        assert row["policy_version"] == step
        assert row["groups_kept"] + row["groups_filtered"] == row["episodes"] / 4
        assert row["success_rate"] == row["reward_mean"]
        assert row["outcome/success"] + row.get("outcome/failure", 0) == row["episodes"]
        assert row["logprob_gap"] == pytest.approx(1.0, abs=1e-4)
        assert row["loss"] == pytest.approx(0.0, abs=1e-5)  # advantages of a group cancel at ratio 1
        assert 0 < row["env_utilisation"] <= 1
        assert row["env_wait_s"] > 0  # more episodes than environments
        assert row["box_minutes"] * 60 > row["rollout_s"] * row["env_utilisation"]
        assert row["step_s"] >= row["rollout_s"] > 0
        assert row["tokens"] == row["groups_kept"] * 4 * 7
        assert (row["staleness_max"], row["lr"]) == (0, CONFIG.optim.learning_rate)
    assert rig.engine.version == 2


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns(make_rig: MakeRig, lora: bool) -> None:
    config = replace(
        CONFIG,
        max_steps=40,
        rollout=replace(CONFIG.rollout, groups_per_step=4, group_size=8, concurrency=32),
        optim=replace(CONFIG.optim, learning_rate=3e-2 if lora else 3e-3),
        eval=EvalConfig(every_steps=0, episodes=100),
        lora=LoraConfig(enabled=lora),
    )
    result = make_rig(config).trainer.train()
    assert result.eval_success_start is not None
    assert result.eval_success_end is not None
    assert 0.25 < result.eval_success_start < 0.75
    assert result.eval_success_end > 0.85


def test_training_never_sees_an_evaluation_seed(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.trainer.train()
    trained = {spec.seed for spec in rig.runner.played if not spec.episode_id.startswith("eval")}
    evaluated = {spec.seed for spec in rig.runner.played if spec.episode_id.startswith("eval")}
    assert evaluated == {seed_for("eval", index) for index in range(4)}
    assert trained.isdisjoint(evaluated)


def test_concurrency_changes_neither_episodes_nor_result(make_rig: MakeRig) -> None:
    def run(concurrency: int) -> tuple[list[EpisodeSpec], list[float]]:
        rig = make_rig(replace(CONFIG, max_steps=1, rollout=replace(CONFIG.rollout, concurrency=concurrency)))
        rig.trainer.train()
        return sorted(rig.runner.played, key=lambda spec: spec.episode_id), [row["reward_mean"] for row in rig.rows()]

    assert run(1) == run(64)


def test_resume_makes_the_identical_next_steps(make_rig: MakeRig) -> None:
    config = replace(CONFIG, max_steps=4, optim=replace(CONFIG.optim, warmup_steps=3))
    straight = make_rig(config)
    straight.trainer.train()

    first = make_rig(replace(config, max_steps=2))
    first.trainer.train()
    second = make_rig(replace(config, resume=str(first.directory)))
    assert second.trainer.state.step == 2
    assert second.trainer.state.data_position == first.trainer.state.data_position
    assert second.engine.version == first.engine.version
    second.trainer.train()

    assert equal(second.weights(), straight.weights())
    assert second.trainer.state.data_position == straight.trainer.state.data_position
    for key in ("step", "policy_version", "lr", "grad_norm", "reward_mean"):
        assert [row[key] for row in second.rows()] == [row[key] for row in straight.rows()[2:]], key
    assert [row["step"] for row in second.rows("eval.jsonl")] == [4, 4]


def test_a_checkpoint_of_another_kind_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.trainer.save(rig.directory / "full")
    with pytest.raises(CheckpointError, match="change lora"):
        make_rig(replace(CONFIG, lora=LoraConfig(enabled=True), resume=str(rig.directory / "full")))


def test_save_and_load_restore_everything(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    rig.trainer.train()
    batch, weights, state = rig.batch(), rig.weights(), rig.trainer.state
    rig.trainer.save(tmp_path / "saved")
    rig.trainer.update(batch)
    after = rig.weights()
    assert not equal(after, weights)
    rig.trainer.load(tmp_path / "saved")
    assert equal(rig.weights(), weights)
    assert rig.trainer.state == state
    rig.trainer.update(batch)
    assert equal(rig.weights(), after)


def test_loss_and_gradients_change_nothing(make_rig: MakeRig) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1))
    rig.trainer.train()
    before, version = rig.weights(), rig.engine.version
    first = rig.trainer.loss_and_gradients(rig.batch())
    second = rig.trainer.loss_and_gradients(rig.batch())
    assert equal(rig.weights(), before)
    assert first.metrics == second.metrics
    assert equal(dict(first.gradients), dict(second.gradients))
    assert set(first.gradients) <= set(before)
    assert all(parameter.grad is None for _, parameter in rig.policy.trainable_parameters())
    assert rig.engine.version == version


def test_a_recorded_batch_replays_the_step(make_rig: MakeRig) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1))
    rig.trainer.train()
    fresh = make_rig()
    record = fresh.trainer.update(rig.batch())
    assert not record.skipped
    assert record.metrics["grad_norm"] == pytest.approx(rig.rows()[0]["grad_norm"], rel=1e-6)
    assert equal(fresh.weights(), rig.weights())
    assert fresh.engine.version == 1


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_one_trajectorys_loss_agrees_with_the_batch_path(make_rig: MakeRig, kl: float) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1, loss=LossConfig(kl_coefficient=kl)))
    rig.trainer.train()
    batch = rig.batch()
    singles = [
        rig.trainer.compute_loss_for_trajectory(*pair)
        for pair in zip(batch.trajectories, batch.advantages, strict=True)
    ]
    # Every trajectory has one sampled token, so the token mean over the batch is the mean of the single losses.
    torch.stack(singles).mean().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in rig.policy.trainable_parameters()
        if parameter.grad is not None
    }
    record = rig.trainer.loss_and_gradients(batch)
    assert torch.stack(singles).mean().item() == pytest.approx(record.metrics["loss"], rel=1e-5)
    assert ("kl" in record.metrics) == (kl > 0)
    for name, gradient in record.gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("poison", ["advantage", "logprob"])
def test_an_update_that_is_not_finite_is_skipped(make_rig: MakeRig, poison: str) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1))
    rig.trainer.train()
    good, weights, version = rig.batch(), rig.weights(), rig.engine.version
    if poison == "advantage":
        bad = Batch(good.trajectories, [float("nan"), *good.advantages[1:]])
    else:
        first = replace(good.trajectories[0], logprobs=np.full_like(good.trajectories[0].logprobs, np.nan))
        bad = Batch([first, *good.trajectories[1:]], good.advantages)
    rig.trainer.save(rig.directory / "before")
    assert rig.trainer.update(bad).skipped
    assert equal(rig.weights(), weights)
    assert rig.engine.version == version
    rig.trainer.update(good)
    after = rig.weights()
    rig.trainer.load(rig.directory / "before")  # optimiser and schedule did not move either
    rig.trainer.update(good)
    assert equal(rig.weights(), after)


def test_a_skipped_update_is_counted_in_its_row(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1))
    before = rig.weights()
    update = PolicyLearner.update

    def poisoned(learner: PolicyLearner, batch: Batch) -> Any:
        return update(learner, Batch(batch.trajectories, [float("inf")] * len(batch.advantages)))

    monkeypatch.setattr(PolicyLearner, "update", poisoned)
    rig.trainer.train()
    (row,) = rig.rows()
    assert (row["updates_skipped"], row["policy_version"], row["loss"]) == (1, 0, None)
    assert equal(rig.weights(), before)


def test_groups_without_signal_are_refilled_and_train_nothing(make_rig: MakeRig) -> None:
    rig = make_rig(replace(CONFIG, max_steps=1), reward=lambda _: 1.0)
    before = rig.weights()
    rig.trainer.train()
    (row,) = rig.rows()
    assert (row["groups_kept"], row["groups_filtered"], row["episodes"]) == (0, 4, 16)
    assert (row["loss"], row["policy_version"], row["tokens"]) == (None, 0, 0)
    assert equal(rig.weights(), before)


def test_several_updates_on_one_batch_move_further(make_rig: MakeRig) -> None:
    def distance(updates: int) -> float:
        rig = make_rig(replace(CONFIG, max_steps=1, optim=replace(CONFIG.optim, updates_per_batch=updates)))
        before = rig.weights()
        rig.trainer.train()
        assert rig.rows()[0]["policy_version"] == 1
        return sum(float((after - before[name]).abs().sum()) for name, after in rig.weights().items())

    assert distance(3) > 1.5 * distance(1)


def test_lost_episodes_are_replaced_and_counted(make_rig: MakeRig) -> None:
    def hook(spec: EpisodeSpec) -> None:
        if spec.episode_id in ("g000000-1", "g000001-2", "g000001-2.1"):
            raise EnvironmentFailure("the box died")

    rig = make_rig(replace(CONFIG, max_steps=1), hook=hook)
    rig.trainer.train()
    (row,) = rig.rows()
    assert row["episodes_infra_error"] == 3
    assert row["episodes"] % 4 == 0
    (message,) = rig.watcher.messages
    assert message.startswith("3 episodes were lost and replaced; the last: g000001-2.1 (")
    assert message.endswith("the box died")


def test_a_step_that_loses_everything_stops_the_run(make_rig: MakeRig) -> None:
    def hook(spec: EpisodeSpec) -> None:
        if not spec.episode_id.startswith("eval"):
            raise EnvironmentFailure("no box answers")

    rig = make_rig(hook=hook)
    with pytest.raises(EnvironmentFailure, match=r"all 64 episodes of a step were lost; the last: .*no box answers"):
        rig.trainer.train()
    verify_checkpoint(rig.directory / "checkpoints" / "last")
    assert rig.trainer.state.data_position == 0


def test_an_interrupted_rollout_saves_and_is_played_again(make_rig: MakeRig) -> None:
    straight = make_rig()
    straight.trainer.train()
    first_step = straight.rows()[0]
    group_of_second_step = f"g{first_step['groups_kept'] + first_step['groups_filtered']:06d}"

    def hook(spec: EpisodeSpec) -> None:
        if spec.group_id == group_of_second_step and spec.episode_id.endswith("-0"):
            os.kill(os.getpid(), signal.SIGINT)

    rig = make_rig(hook=hook)
    with pytest.raises(KeyboardInterrupt):
        rig.trainer.train()
    assert [row["step"] for row in rig.rows()] == [1]
    assert rig.watcher.messages[-1] == f"stopped after step 1; resume={rig.directory}/checkpoints/last"
    rig.trainer.close()
    resumed = make_rig(replace(CONFIG, resume=str(rig.directory / "checkpoints" / "last")))
    resumed.trainer.train()
    assert equal(resumed.weights(), straight.weights())


def test_an_interrupt_during_an_update_waits_for_its_end(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig()
    update = PolicyLearner.update

    def interrupted(learner: PolicyLearner, batch: Batch) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return update(learner, batch)

    monkeypatch.setattr(PolicyLearner, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rig.trainer.train()
    assert (rig.trainer.state.step, rig.engine.version, len(rig.rows())) == (1, 1, 1)


def test_an_update_that_hangs_can_be_broken_off_and_what_is_whole_is_named(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE_S", 0.0)
    rig = make_rig(replace(CONFIG, max_steps=3, checkpoint=CheckpointConfig(every_steps=1)))
    update = PolicyLearner.update

    def hangs(learner: PolicyLearner, batch: Batch) -> Any:
        if rig.trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3600)
        return update(learner, batch)

    monkeypatch.setattr(PolicyLearner, "update", hangs)
    with pytest.raises(interrupts.BrokenOff):
        rig.trainer.train()
    said = re.fullmatch(
        r"an update was broken off after step 2: (.+) \(step ([12])\) is whole", rig.watcher.messages[-1]
    )
    assert said is not None and said[1].endswith(f"step_00000{said[2]}"), rig.watcher.messages[-1]
    verify_checkpoint(rig.directory / "checkpoints" / f"step_00000{said[2]}")


def test_target_success_stops_early(make_rig: MakeRig) -> None:
    config = replace(CONFIG, max_steps=50, eval=replace(CONFIG.eval, every_steps=1, target_success=1.0))
    rig = make_rig(config, reward=lambda token: float(rig.trainer.state.step > 0 or token % 2))
    result = rig.trainer.train()
    assert (result.stop_reason, result.steps, result.eval_success_end) == ("target_success", 1, 1.0)


def test_lost_patience_stops_early(make_rig: MakeRig) -> None:
    config = replace(CONFIG, max_steps=50, eval=replace(CONFIG.eval, every_steps=1, patience=2))
    rig = make_rig(config, reward=lambda _: 0.0)
    result = rig.trainer.train()
    assert (result.stop_reason, result.steps, rig.trainer.state.best_step) == ("patience", 2, 0)


def test_periodic_checkpoints_are_pruned_but_never_the_best(make_rig: MakeRig) -> None:
    config = replace(CONFIG, max_steps=4, checkpoint=CheckpointConfig(every_steps=1, keep=2))
    rig = make_rig(config)
    rig.trainer.train()
    names = {path.name for path in (rig.directory / "checkpoints").iterdir()}
    assert {"best", "last", "step_000003", "step_000004"} <= names
    assert "step_000001" not in names


def test_evaluate_is_repeatable_and_trains_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    before = rig.weights()
    first, second = rig.trainer.evaluate(TASKS), rig.trainer.evaluate(TASKS)
    assert first == second
    assert (first.episodes, sum(n for _, n in first.by_category.values())) == (4, 4)
    assert equal(rig.weights(), before)


def test_close_is_safe_to_call_twice(make_rig: MakeRig) -> None:
    rig = make_rig()
    with closing(rig.trainer):
        pass
    rig.trainer.close()


def test_find_checkpoint(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    rig.trainer.save(rig.directory / "checkpoints" / "last")
    assert find_checkpoint(str(rig.directory)) == rig.directory / "checkpoints" / "last"
    assert find_checkpoint(str(rig.directory / "checkpoints" / "last")) == rig.directory / "checkpoints" / "last"
    with pytest.raises(CheckpointError, match="resume="):
        find_checkpoint(str(tmp_path / "nothing"))


def test_warmup_reaches_the_rows(make_rig: MakeRig) -> None:
    rig = make_rig(replace(CONFIG, optim=OptimConfig(learning_rate=1e-3, warmup_steps=1)))
    rig.trainer.train()
    assert [row["lr"] for row in rig.rows()] == [5e-4, 1e-3]
