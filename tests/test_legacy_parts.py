"""The pure parts of the synchronous trainer, by hand."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import EvalConfig, TrainConfig
from trainers.grpo.learner import warmup_factor
from trainers.protocol import TrainerState
from trainers.run import interrupts
from trainers.run.interrupts import BrokenOff, interrupts_held
from trainers.run.step_metrics import staleness
from trainers.run.stopping import observe, out_of_budget, stop_after_evaluation


def test_interrupts_are_held_however_often_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt) as raised, interrupts_held():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached and not isinstance(raised.value, BrokenOff)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().err.count("this is brought to its end first; Ctrl-C in 30 s or later breaks it off") == 2


def test_what_hangs_can_be_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE_S", 0.0)
    with pytest.raises(BrokenOff), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not broken off")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_warmup_by_hand() -> None:
    assert [warmup_factor(update, 3) for update in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_observe_keeps_start_best_and_patience() -> None:
    state = TrainerState()
    seen: list[tuple[float | None, float | None, int | None, int]] = []
    for step, success in enumerate([0.5, 0.4, 0.7, 0.7]):
        state = observe(replace(state, step=step), success)
        seen.append((state.eval_success_start, state.best_success, state.best_step, state.evaluations_without_best))
    assert seen == [(0.5, 0.5, 0, 0), (0.5, 0.5, 0, 1), (0.5, 0.7, 2, 0), (0.5, 0.7, 2, 1)]


def test_stop_reasons_by_hand() -> None:
    config = EvalConfig(target_success=0.9, patience=2)
    assert stop_after_evaluation(TrainerState(), 0.9, config) == "target_success"
    assert stop_after_evaluation(TrainerState(evaluations_without_best=2), 0.5, config) == "patience"
    assert stop_after_evaluation(TrainerState(evaluations_without_best=1), 0.5, config) is None
    budget = TrainConfig(max_steps=5, max_minutes=1.0)
    assert out_of_budget(TrainerState(step=5), budget) == "max_steps"
    assert out_of_budget(TrainerState(step=1, rollout_s=40.0, train_s=20.0), budget) == "max_minutes"
    assert out_of_budget(TrainerState(step=1, rollout_s=40.0, train_s=19.0), budget) is None


def versions(row: Sequence[int]) -> Trajectory:
    n = len(row)
    mask = np.asarray([version >= 0 for version in row], np.int32)
    zeros = np.zeros(n, np.float32)
    ids = np.zeros(n, np.int64)
    return Trajectory(ids, mask, zeros, np.asarray(row, np.int32), [], 0.0, Outcome.FAILURE, "t", "g", "e", 0)


def test_staleness_by_hand() -> None:
    stale = staleness([versions([-1, 3, 4]), versions([-1, -1, 1, 5])], version=5)
    assert (stale.mean, stale.max) == ((2 + 1 + 4 + 0) / 4, 4)
    assert (stale.rows_sum, stale.rows) == (2 + 4, 2)
    assert staleness([], version=5).max == 0
