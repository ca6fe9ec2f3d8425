"""Learning: rollouts, rewards, advantages, loss and optimiser."""

from __future__ import annotations

import inspect
from typing import Literal, cast

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.by_name import load
from cua_agent.rewards import RewardFunction, best_without_success
from trainers.config.types import Momentum, PathText
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
    context: Literal["full", "last_k"] = Field(default="full", description="screenshots kept in the conversation")
    last_k: int = Field(default=3, ge=1, description="screenshots kept with context=last_k")
    max_refills: int = Field(default=1, ge=0, description="further rounds of groups when too many gave no signal")
    episode_timeout_s: float = Field(
        default=600.0, gt=0, description="longest episode, waits for servers included; then it is lost and replaced"
    )
    infra_retries: int = Field(default=3, ge=0, description="replacements of one episode lost to infrastructure")


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
    function: PathText | None = Field(
        default=None, description="a reward of one's own instead: module:function(outcome, score, turns, task)"
    )

    @model_validator(mode="after")
    def _success_is_best(self) -> RewardConfig:
        best = best_without_success(self)
        for name in ("partial", "turn_cost", "minute_cost", "malformed_cost", "side_effect_cost"):
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

    normalise_by_std: bool = Field(default=True, description="divide by the group's standard deviation")
    min_group_std: float = Field(default=1e-4, ge=0, description="groups below have no signal and are filtered")


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """The policy-gradient loss."""

    kind: Literal["ppo_clip", "policy_gradient"] = Field(default="ppo_clip", description="objective")
    clip_epsilon: float = Field(default=0.2, gt=0, lt=1, description="PPO's clip range")
    decoupled: bool = Field(
        default=False, description="ppo_clip: clip around the present policy, weight by present / sampling policy"
    )
    behaviour_weight_cap: float = Field(
        default=5.0, gt=1, description="decoupled: tokens with a larger weight are left out"
    )
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the KL to the frozen reference; 0: no reference"
    )
    kl_estimator: Literal["k1", "k3"] = Field(default="k3", description="estimator of that KL")
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    normalisation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="what the summed token losses are divided by"
    )
    constant_length: int = Field(default=256, ge=1, description="divisor per trajectory with normalisation=constant")


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
