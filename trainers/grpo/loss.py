"""The GRPO loss of a micro-batch, as a sum that adds up to the batch's loss whatever the split.

Every trained token carries a coefficient that was computed over the whole batch (`token_coefficients`), so a
micro-batch needs to know nothing about the others: losses, gradients and metrics are added. Sums are taken in
float64, because advantages cancel within a group and float32 would make the result depend on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainers.config import LossConfig
from trainers.grpo.kl import ESTIMATORS
from trainers.grpo.objectives import TokenLosses, token_losses
from trainers.grpo.ratios import log_ratio


@dataclass(frozen=True)
class LossInputs:
    """The N trained tokens of a micro-batch, all rows concatenated; every tensor is [N], float32 unless noted. `rows`
    int64 numbers their rows from 0.

    `logprobs` and `entropy` belong to the policy being trained (with gradient), `old_logprobs` to the policy that
    sampled, `reference_logprobs` to the frozen reference (None: no KL term), `proximal_logprobs` to the policy that the
    update starts from (without gradient; for the decoupled loss only). `advantages` repeats each episode's advantage on
    its tokens. `coefficients` (float64) is from `token_coefficients`. `actions` (bool) are tokens of a tool call; the
    others are thought (None: nobody knows).
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    coefficients: Tensor
    entropy: Tensor
    rows: Tensor
    reference_logprobs: Tensor | None = None
    proximal_logprobs: Tensor | None = None
    actions: Tensor | None = None


@dataclass(frozen=True)
class LossSums:
    """Metrics of some micro-batches, kept as sums so that they add; `loss` and `policy_loss` are the micro-batches'
    shares of the batch's, the rest are sums over tokens. `kl` is None when there was no reference."""

    tokens: int = 0
    loss: float = 0.0
    policy_loss: float = 0.0
    entropy: float = 0.0
    actions: float = 0.0
    action_entropy: float = 0.0
    thoughts: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    corrected: float = 0.0
    weights: float = 0.0
    squared_weights: float = 0.0
    logprob_gap: float = 0.0
    ratio_max: float = 0.0
    kl: float | None = None

    def __add__(self, other: LossSums) -> LossSums:
        kls = [sums.kl for sums in (self, other) if sums.kl is not None]
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "kl"}
        added["ratio_max"] = max(self.ratio_max, other.ratio_max)
        return LossSums(**added, kl=sum(kls) if kls else None)

    def metrics(self) -> dict[str, float]:
        """`loss` and `policy_loss` of the batch. Token means: `entropy`, `clip_fraction`, the part of it that was
        clipped from above (`clip_fraction_high`), `correction_fraction` (beyond the bounds of the decoupled loss),
        `logprob_gap` (mean exp|dlogp| between training and rollout; <= 1.05 is healthy) and, with a reference, `kl`.
        `effective_sample_size`: (sum w)^2 / (N sum w^2) of the decoupled loss's weights w (Kong, 1992), 1 without.
        `ratio_max`, `tokens`. Where tokens of actions and thoughts can be told and there are some, the `entropy_action`
        and `entropy_thought` of each."""
        count = max(self.tokens, 1)
        means = {
            "loss": self.loss,
            "policy_loss": self.policy_loss,
            "entropy": self.entropy / count,
            "clip_fraction": (self.clipped_low + self.clipped_high) / count,
            "clip_fraction_high": self.clipped_high / count,
            "correction_fraction": self.corrected / count,
            "effective_sample_size": self.weights**2 / (count * self.squared_weights) if self.squared_weights else 0.0,
            "logprob_gap": self.logprob_gap / count,
            "ratio_max": self.ratio_max,
            "tokens": float(self.tokens),
        }
        if self.kl is not None:
            means["kl"] = self.kl / count
        if self.actions:
            means["entropy_action"] = self.action_entropy / self.actions
        if self.thoughts:
            means["entropy_thought"] = (self.entropy - self.action_entropy) / self.thoughts
        return means


@dataclass(frozen=True)
class LossOutputs:
    """`loss`: the micro-batch's share of the batch loss, 0-d float64 with gradient; `sums`: its metrics."""

    loss: Tensor
    sums: LossSums


def token_coefficients(token_counts: Sequence[int], weights: Sequence[float], config: LossConfig) -> list[float]:
    """The factor on every trained token of each row, over the whole batch; the batch loss is sum(factor * loss).

    `token_counts` are the trained tokens of each row, `weights` the rows' `Trajectory.weight` (1 / rows of its
    episode, so that E = sum(weights) is the number of episodes).

    - token_mean: 1 / (all trained tokens). Rows of one episode train disjoint tokens, so weights play no part.
    - sequence_mean: weight / (tokens of the row * E): the mean over episodes of the mean over tokens (GRPO,
      DeepSeekMath equation 3).
    - constant: 1 / (constant_length * E): no length bias (Dr. GRPO, arXiv 2503.20783); weights only count episodes.

    Raises `ValueError` when no token is trained.
    """
    total = sum(token_counts)
    if total == 0:
        raise ValueError(f"none of the batch's {len(token_counts)} trajectories has a token to train on")
    episodes = sum(weights)
    if config.normalisation == "token_mean":
        return [1.0 / total] * len(token_counts)
    if config.normalisation == "sequence_mean":
        return [weight / (max(n, 1) * episodes) for n, weight in zip(token_counts, weights, strict=True)]
    if config.normalisation == "constant":
        return [1.0 / (config.constant_length * episodes)] * len(token_counts)
    raise ValueError(f"loss.normalisation={config.normalisation!r}: allowed are token_mean, sequence_mean, constant")


def grpo_loss(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Policy loss + kl_coefficient * KL - entropy_coefficient * entropy, each token times its coefficient."""
    terms = token_losses(
        inputs.logprobs, inputs.proximal_logprobs, inputs.old_logprobs, inputs.advantages, inputs.rows, config
    )
    objective, kl = terms.losses, None
    if inputs.reference_logprobs is not None:
        kl = ESTIMATORS[config.kl_estimator](inputs.logprobs, inputs.reference_logprobs)
        objective = objective + config.kl_coefficient * kl
    elif config.kl_coefficient != 0:
        raise ValueError(f"loss.kl_coefficient={config.kl_coefficient} needs reference log-probs, and there are none")
    if config.entropy_coefficient != 0:
        objective = objective - config.entropy_coefficient * inputs.entropy

    loss = (inputs.coefficients * objective.double()).sum()
    policy_loss = (inputs.coefficients * terms.losses.double()).sum()
    sums = loss_sums(loss, policy_loss, inputs.logprobs, inputs.old_logprobs, inputs.entropy, terms, kl, inputs.actions)
    return LossOutputs(loss, sums)


@torch.no_grad()
def loss_sums(
    loss: Tensor,
    policy_loss: Tensor,
    logprobs: Tensor,
    old_logprobs: Tensor,
    entropy: Tensor,
    terms: TokenLosses,
    kl: Tensor | None,
    actions: Tensor | None = None,
) -> LossSums:
    """The sums of a micro-batch whose shares of the batch's loss are `loss` and `policy_loss`, 0-d; the rest [N], where
    `actions` tells tokens of actions from those of thoughts, if anybody can."""
    gap = log_ratio(logprobs, old_logprobs).double()
    zero = gap.new_zeros(())
    weights = torch.ones_like(gap) if terms.correction is None else terms.correction.weights.double()
    sums = {
        "loss": loss,
        "policy_loss": policy_loss,
        "entropy": entropy.double().sum(),
        "actions": zero if actions is None else actions.double().sum(),
        "action_entropy": zero if actions is None else (entropy * actions).double().sum(),
        "thoughts": zero if actions is None else (~actions).double().sum(),
        "clipped_low": terms.clipped_low.double().sum(),
        "clipped_high": terms.clipped_high.double().sum(),
        "corrected": zero if terms.correction is None else terms.correction.cut.double().sum(),
        "weights": weights.sum(),
        "squared_weights": weights.square().sum(),
        "logprob_gap": gap.abs().exp().sum(),
        "ratio_max": gap.exp().max() if gap.numel() else zero,
        "kl": zero if kl is None else kl.double().sum(),
    }
    # One transfer from the device, not one for each.
    values = torch.stack([value.double() for value in sums.values()]).tolist()
    figures = dict(zip(sums, values, strict=True))
    if kl is None:
        del figures["kl"]
    return LossSums(tokens=logprobs.numel(), **figures)
