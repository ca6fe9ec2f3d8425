"""When to stop: the best evaluation so far, target success, and patience."""

from __future__ import annotations

from dataclasses import replace

from trainers.config import EvalConfig, TrainConfig
from trainers.protocol import TrainerState


class Stopped(Exception):  # noqa: N818 (the run is over, nothing is wrong)
    """Ends a run in the midst of a loop or a step: the `reason`, and seconds of collecting that no step counts."""

    def __init__(self, reason: str, collecting_s: float = 0.0) -> None:
        super().__init__(reason, collecting_s)
        self.reason = reason
        self.collecting_s = collecting_s


def observe(state: TrainerState, success_rate: float) -> TrainerState:
    """`state` after an evaluation on held-out seeds; `best_step` equals `step` when it is a new best."""
    start = success_rate if state.eval_success_start is None else state.eval_success_start
    state = replace(state, eval_success_start=start, evaluated_step=state.step)
    if state.best_success is None or success_rate > state.best_success:
        return replace(state, best_success=success_rate, best_step=state.step, evaluations_without_best=0)
    return replace(state, evaluations_without_best=state.evaluations_without_best + 1)


def stop_after_evaluation(state: TrainerState, success_rate: float, config: EvalConfig) -> str | None:
    """Why the run should end after this evaluation, or None."""
    if config.target_success is not None and success_rate >= config.target_success:
        return "target_success"
    if config.patience is not None and state.evaluations_without_best >= config.patience:
        return "patience"
    return None


def out_of_budget(state: TrainerState, config: TrainConfig, collecting_s: float = 0.0) -> str | None:
    """Why no further step may begin, or go on after `collecting_s` seconds of collecting; or None."""
    if state.step >= config.max_steps:
        return "max_steps"
    spent_s = state.rollout_s + state.train_s + collecting_s
    if config.max_minutes is not None and spent_s >= 60 * config.max_minutes:
        return "max_minutes"
    return None
