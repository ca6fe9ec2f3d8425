"""Learning: rollouts, rewards, advantages, loss and optimiser."""

from __future__ import annotations

import inspect
from typing import Literal, cast

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.by_name import load
from cua_agent.rewards import RewardFunction, best_without_success
from trainers.config.types import Momentum, PathText, Temperature
from trainers.config.validation import STRICT, ConfigError, shown


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """How episodes are collected."""

    group_size: int = Field(default=8, ge=2, description="episodes per group (same task, same start)")
    groups_per_step: int = Field(default=8, ge=1, description="groups per training step")
    max_turns: int = Field(default=12, ge=1, description="upper bound over every task's own limit of turns")
    max_new_tokens: int = Field(default=48, ge=1, description="most sampled tokens of a turn")
    concurrency: int = Field(default=64, ge=1, description="episodes at a time; 1 is one after the other")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    greedy: bool = Field(default=False, description="take the likeliest token: no exploration, for comparing backends")
    max_staleness: int = Field(
        default=0, ge=0, description="areal: most policy versions between a token and its update"
    )
    context: Literal["full", "last_k", "folded"] = Field(
        default="full", description="screenshots in view: all, the last_k newest, or up to last_k, dropped together"
    )
    last_k: int = Field(default=3, ge=1, description="most screenshots in view with context=last_k or folded")
    max_refills: int = Field(default=1, ge=0, description="further rounds of groups when too many gave no signal")
    episode_timeout_s: float = Field(
        default=600.0, gt=0, description="longest episode, waits for servers included; then it is lost and replaced"
    )
    infra_retries: int = Field(default=3, ge=0, description="replacements of one episode lost to infrastructure")

    @property
    def most_screenshots(self) -> int:
        """How many screenshots a prompt has at most."""
        return self.max_turns if self.context == "full" else self.last_k


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """Reward of an episode: what its outcome is worth, less costs (docs/concepts.md, "Rewards")."""

    success: float = Field(default=1.0, description="the goal holds")
    false_claim: float = Field(default=0.0, description="reported complete, but the goal does not hold")
    failure: float = Field(default=0.0, description="the world ended the episode, goal not reached")
    out_of_turns: float = Field(default=0.0, description="ran out of turns")
    partial: float = Field(
        default=0.0, ge=0, le=0.5, description="added without success, times how far the goal holds, 0 to 1"
    )

    turn_cost: float = Field(default=0.0, ge=0, description="subtracted for every turn")
    minute_cost: float = Field(default=0.0, ge=0, description="subtracted for every minute of sampling and acting")
    malformed_cost: float = Field(default=0.0, ge=0, description="subtracted for every turn that is no legal call")
    side_effect_cost: float = Field(
        default=0.0, ge=0, description="subtracted for everything changed besides the goal, where the world can tell"
    )
    overlong_cost: float = Field(
        default=0.0, ge=0, description="subtracted from too long an episode, in part from one near it (DAPO)"
    )
    overlong_after: int = Field(default=8, ge=0, description="turns from which on overlong_cost begins to grow")
    overlong_turns: int = Field(default=4, ge=1, description="further turns after which it is subtracted in full")
    function: PathText | None = Field(
        default=None, description="a reward of one's own instead: module:function(outcome, score, turns, task)"
    )

    @model_validator(mode="after")
    def _success_is_best(self) -> RewardConfig:
        best = best_without_success(self)
        for name in ("partial", "turn_cost", "minute_cost", "malformed_cost", "side_effect_cost", "overlong_cost"):
            value = getattr(self, name)
            if value and best >= self.success:
                raise ValueError(
                    f"{name}={value:g} makes up to {best:g} of no success; allowed: below success={self.success:g}"
                    if name == "partial"
                    else f"{name}={value:g} with success={self.success:g}: allowed: a success above {best:g}, which "
                    "there is without one"
                )
        return self

    @model_validator(mode="after")
    def _function_alone(self) -> RewardConfig:
        if self.function is None:
            return self
        for name, info in type(self).__pydantic_fields__.items():  # type: ignore[attr-defined]
            if name != "function" and getattr(self, name) != info.default:
                raise ValueError(f"{name}={getattr(self, name):g} with function={self.function}: it alone decides")
        function = load(self.function, "reward.function")
        try:
            inspect.signature(function).bind("outcome", "score", "turns", "task")
        except (TypeError, ValueError):
            raise ConfigError(
                f"reward.function={shown(self.function, 80)}: allowed: a function (outcome, score, turns, task)"
            ) from None
        return self

    @property
    def custom(self) -> RewardFunction | None:
        """The function that `function` names."""
        return None if self.function is None else cast(RewardFunction, load(self.function, "reward.function"))


@dataclass(frozen=True, config=STRICT)
class AdvantageConfig:
    """Group-relative advantages."""

    baseline: Literal["mean", "leave_one_out"] = Field(
        default="mean", description="what a reward is compared with: the group's mean, or that of the others (RLOO)"
    )
    normalise_by_std: bool = Field(default=True, description="divide by the group's standard deviation")
    min_group_std: float = Field(default=1e-4, ge=0, description="groups below have no signal and are filtered")
    credit: Literal["episode", "gigpo", "turn", "fork"] = Field(
        default="episode",
        description="what a turn is judged by besides its episode: nothing, what siblings came to from the same state "
        "(GiGPO), from their turn of the same number, or what episodes came to that branch off at its beginning",
    )
    branches: int = Field(
        default=4, ge=1, description="fork: how many of a group's episodes branch off another one of it"
    )
    step_weight: float = Field(default=1.0, ge=0, description="gigpo, turn, fork: weight of that judgement")
    discount: float = Field(default=0.95, gt=0, le=1, description="gigpo, turn: what a reward is worth a turn earlier")

    @property
    def forked(self) -> int:
        """How many of a group's episodes branch off another one."""
        return self.branches if self.credit == "fork" else 0

    @model_validator(mode="after")
    def _without_deviation(self) -> AdvantageConfig:
        if self.baseline == "leave_one_out" and self.normalise_by_std:
            raise ValueError("baseline=leave_one_out with normalise_by_std=true: RLOO divides by nothing; set it false")
        return self


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """The policy-gradient loss."""

    kind: Literal["ppo_clip", "sapo", "cispo", "policy_gradient"] = Field(default="ppo_clip", description="objective")
    ratio_level: Literal["token", "sequence"] = Field(
        default="token", description="ratio of present to sampling policy: of a token, or of its whole row (GSPO)"
    )
    clip_epsilon: float = Field(default=0.2, gt=0, lt=1, description="clip range of the ratio, downwards")
    clip_epsilon_high: float | None = Field(
        default=None, gt=0, description="the same upwards (clip-higher); null: as clip_epsilon"
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="ppo_clip: most that a ratio counts where the advantage is negative"
    )
    sapo_temperatures: tuple[Temperature, Temperature] = Field(
        default=(1.0, 1.05), description="sapo: how sharply the gate closes, for positive and negative advantages"
    )
    decoupled: bool = Field(
        default=False, description="ratios are to the present policy, losses are weighted by present / sampling policy"
    )
    behaviour_level: Literal["token", "sequence", "geometric"] = Field(
        default="token", description="decoupled: what is held against the bounds: tokens, rows, or means over rows"
    )
    behaviour_metric: Literal["ratio", "k1", "k2", "k3"] = Field(
        default="ratio", description="decoupled: the bounds are of the weight, or of an estimate of the KL"
    )
    behaviour_action: Literal["mask", "clamp"] = Field(
        default="mask", description="decoupled: beyond the bounds, leave out or take the bound as weight"
    )
    behaviour_weight_cap: float = Field(default=5.0, gt=0, description="decoupled: upper bound")
    behaviour_weight_floor: float | None = Field(default=None, description="decoupled: lower bound; null: none")
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the KL to the frozen reference; 0: no reference"
    )
    kl_estimator: Literal["k1", "k3"] = Field(default="k3", description="estimator of that KL")
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    normalisation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="what the summed token losses are divided by"
    )
    constant_length: int = Field(default=256, ge=1, description="divisor per trajectory with normalisation=constant")

    @model_validator(mode="after")
    def _takes_part(self) -> LossConfig:
        clips = self.kind in ("ppo_clip", "cispo")
        if self.clip_epsilon_high is not None and not clips:
            raise ValueError(f"clip_epsilon_high={self.clip_epsilon_high:g}: kind={self.kind} does not clip")
        if self.dual_clip is not None and self.kind != "ppo_clip":
            raise ValueError(f"dual_clip={self.dual_clip:g} with kind={self.kind}: it belongs to ppo_clip")
        if self.ratio_level != "token" and self.kind == "policy_gradient":
            raise ValueError(f"ratio_level={self.ratio_level}: kind=policy_gradient has no ratio")
        return self

    @model_validator(mode="after")
    def _bounds(self) -> LossConfig:
        lower, upper = self.behaviour_weight_floor, self.behaviour_weight_cap
        by_ratio = self.behaviour_metric == "ratio"
        if by_ratio and upper <= 1:
            raise ValueError(f"behaviour_weight_cap={upper:g}: above 1 with behaviour_metric=ratio")
        if by_ratio and lower is not None and not 0 < lower < 1:
            raise ValueError(f"behaviour_weight_floor={lower:g}: between 0 and 1 with behaviour_metric=ratio, or null")
        if lower is not None and lower >= upper:
            raise ValueError(f"behaviour_weight_floor={lower:g}: below behaviour_weight_cap={upper:g}")
        if self.behaviour_action == "clamp" and not by_ratio:
            raise ValueError(f"behaviour_metric={self.behaviour_metric}: only ratio with behaviour_action=clamp")
        return self


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0, description="peak learning rate")
    betas: tuple[Momentum, Momentum] = Field(default=(0.9, 0.95), description="AdamW's two momenta")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(default=2, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(default=0.3, gt=0, description="gradient clipping")
    updates_per_batch: int = Field(default=1, ge=1, description="optimiser steps on each batch")
    micro_batch_tokens: int = Field(
        default=4096, ge=64, description="token budget of one forward pass; a longer row goes alone"
    )
