"""The GRPO loss of a micro-batch, as a sum that adds up to the batch's loss whatever the split.

Every trained token carries a coefficient that was computed over the whole batch (`token_coefficients`), so a
micro-batch needs to know nothing about the others: losses, gradients and metrics are added. Sums are taken in
float64, because advantages cancel within a group and float32 would make the result depend on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from cua_agent.models.transfer import sent
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


_SUMMED = (
    "loss",
    "policy_loss",
    "entropy",
    "actions",
    "action_entropy",
    "thoughts",
    "clipped_low",
    "clipped_high",
    "corrected",
    "weights",
    "squared_weights",
    "logprob_gap",
    "kl",
)


@dataclass(frozen=True, eq=False)
class LossSums:
    """Metrics of some micro-batches, kept as sums so that they add.

    `sums` float64 [13] are those of `_SUMMED`: the micro-batches' shares of the batch's `loss` and `policy_loss`, the
    rest over tokens; `ratio_max` float64, 0-d. Both stay on the device, which nobody has to wait for, until they are
    asked for. `has_kl`: there was a reference.
    """

    tokens: int = 0
    sums: Tensor = field(default_factory=partial(torch.zeros, len(_SUMMED), dtype=torch.float64))
    ratio_max: Tensor = field(default_factory=partial(torch.zeros, (), dtype=torch.float64))
    has_kl: bool = False

    def __add__(self, other: LossSums) -> LossSums:
        device = other.sums.device if self.sums.is_cpu else self.sums.device
        return LossSums(
            self.tokens + other.tokens,
            sent(self.sums, device) + sent(other.sums, device),
            torch.maximum(sent(self.ratio_max, device), sent(other.ratio_max, device)),
            self.has_kl or other.has_kl,
        )

    def with_losses(self, loss: Tensor, policy_loss: Tensor) -> LossSums:
        """The same with a micro-batch's shares of the batch's losses, 0-d: the first two of `_SUMMED`."""
        shares = torch.stack([loss.detach(), policy_loss.detach()]).double()
        return replace(self, sums=torch.cat([shares, self.sums[len(shares) :]]))

    def on_host(self) -> LossSums:
        """The same in main memory."""
        return replace(self, sums=self.sums.cpu(), ratio_max=self.ratio_max.cpu())

    def metrics(self) -> dict[str, float]:
        """`loss` and `policy_loss` of the batch. Token means: `entropy`, `clip_fraction`, the part of it that was
        clipped from above (`clip_fraction_high`), `correction_fraction` (beyond the bounds of the decoupled loss),
        `logprob_gap` (mean exp|dlogp| between training and rollout; <= 1.05 is healthy) and, with a reference, `kl`.
        `effective_sample_size`: (sum w)^2 / (N sum w^2) of the decoupled loss's weights w (Kong, 1992), 1 without.
        `ratio_max`, `tokens`. Where tokens of actions and thoughts can be told and there are some, the `entropy_action`
        and `entropy_thought` of each."""
        values = [*self.sums.tolist(), float(self.ratio_max)]
        of = dict(zip([*_SUMMED, "ratio_max"], values, strict=True))
        count, squared = max(self.tokens, 1), of["squared_weights"]
        means = {
            "loss": of["loss"],
            "policy_loss": of["policy_loss"],
            "entropy": of["entropy"] / count,
            "clip_fraction": (of["clipped_low"] + of["clipped_high"]) / count,
            "clip_fraction_high": of["clipped_high"] / count,
            "correction_fraction": of["corrected"] / count,
            "effective_sample_size": of["weights"] ** 2 / (count * squared) if squared else 0.0,
            "logprob_gap": of["logprob_gap"] / count,
            "ratio_max": of["ratio_max"],
            "tokens": float(self.tokens),
        }
        if self.has_kl:
            means["kl"] = of["kl"] / count
        if of["actions"]:
            means["entropy_action"] = of["action_entropy"] / of["actions"]
        if of["thoughts"]:
            means["entropy_thought"] = (of["entropy"] - of["action_entropy"]) / of["thoughts"]
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
    sums = loss_sums(inputs.logprobs, inputs.old_logprobs, inputs.entropy, terms, kl, inputs.actions)
    return LossOutputs(loss, sums.with_losses(loss, policy_loss))


@torch.no_grad()
def loss_sums(
    logprobs: Tensor,
    old_logprobs: Tensor,
    entropy: Tensor,
    terms: TokenLosses,
    kl: Tensor | None,
    actions: Tensor | None = None,
) -> LossSums:
    """The sums of a micro-batch but its losses (see `LossSums.with_losses`). All [N]; `actions` tells tokens of actions
    from those of thoughts, if anybody can."""
    gap = log_ratio(logprobs, old_logprobs).double()
    zero = gap.new_zeros(())
    weights = torch.ones_like(gap) if terms.correction is None else terms.correction.weights.double()
    sums = {
        "loss": zero,
        "policy_loss": zero,
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
        "kl": zero if kl is None else kl.double().sum(),
    }
    return LossSums(
        tokens=logprobs.numel(),
        sums=torch.stack([sums[name] for name in _SUMMED]),
        ratio_max=gap.exp().max() if gap.numel() else zero,
        has_kl=kl is not None,
    )
