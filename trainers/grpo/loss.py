"""The GRPO loss of a micro-batch, as a sum that adds up to the batch's loss whatever the split.

Every trained token carries a coefficient that was computed over the whole batch (`token_coefficients`), so a
micro-batch needs to know nothing about the others: losses, gradients and metrics are added. Sums are taken in
float64, because advantages cancel within a group and float32 would make the result depend on the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.config import LossConfig
from trainers.grpo.kl import ESTIMATORS, MAX_LOG_RATIO


@dataclass(frozen=True)
class LossInputs:
    """The N trained tokens of a micro-batch, all rows concatenated; every tensor is [N], float32 unless noted.

    `logprobs` and `entropy` belong to the policy being trained (with gradient), `old_logprobs` to the policy that
    sampled, `reference_logprobs` to the frozen reference (None: no KL term), `proximal_logprobs` to the policy that the
    update starts from (without gradient; for the decoupled loss only). `advantages` repeats each episode's advantage on
    its tokens. `coefficients` (float64) is from `token_coefficients`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    coefficients: Tensor
    entropy: Tensor
    reference_logprobs: Tensor | None = None
    proximal_logprobs: Tensor | None = None


@dataclass(frozen=True)
class LossSums:
    """Metrics of some micro-batches, kept as sums so that they add; `loss` and `policy_loss` are the micro-batches'
    shares of the batch's, the rest are sums over tokens. `kl` is None when there was no reference."""

    tokens: int = 0
    loss: float = 0.0
    policy_loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    logprob_gap: float = 0.0
    ratio_max: float = 0.0
    kl: float | None = None

    def __add__(self, other: LossSums) -> LossSums:
        kls = [sums.kl for sums in (self, other) if sums.kl is not None]
        return LossSums(
            tokens=self.tokens + other.tokens,
            loss=self.loss + other.loss,
            policy_loss=self.policy_loss + other.policy_loss,
            entropy=self.entropy + other.entropy,
            clipped=self.clipped + other.clipped,
            logprob_gap=self.logprob_gap + other.logprob_gap,
            ratio_max=max(self.ratio_max, other.ratio_max),
            kl=sum(kls) if kls else None,
        )

    def metrics(self) -> dict[str, float]:
        """`loss` and `policy_loss` of the batch; `entropy`, `clip_fraction`, `logprob_gap` (mean exp|dlogp| between
        training and rollout; <= 1.05 is healthy) and, with a reference, `kl` as token means; `ratio_max`, `tokens`."""
        count = max(self.tokens, 1)
        means = {
            "loss": self.loss,
            "policy_loss": self.policy_loss,
            "entropy": self.entropy / count,
            "clip_fraction": self.clipped / count,
            "logprob_gap": self.logprob_gap / count,
            "ratio_max": self.ratio_max,
            "tokens": float(self.tokens),
        }
        return means if self.kl is None else means | {"kl": self.kl / count}


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


def ppo_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) per token, and whether clipping took effect.

    Equation 7 of Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), negated.
    """
    ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages
    return -torch.minimum(unclipped, clipped), clipped < unclipped


def decoupled_ppo_clip(
    logprobs: Tensor, proximal: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon: float, cap: float
) -> tuple[Tensor, Tensor]:
    """`ppo_clip` around the proximal policy, each token weighted by proximal / behaviour, and whether it was clipped.

    For tokens that an older policy sampled: Hilton et al., "Batch size-invariance for policy optimization" (arXiv
    2110.00641), section 3, as AReaL uses it (arXiv 2505.24298, section 5.2). A token whose weight exceeds `cap` is too
    far off-policy to be corrected: it contributes 0.
    """
    clipped_loss, clipped = ppo_clip(logprobs, proximal, advantages, epsilon)
    weight = (proximal - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    beyond = weight > cap  # NaN is not, and shows
    return torch.where(beyond, 0.0, clipped_loss * weight), clipped & ~beyond


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A * log pi per token: REINFORCE (Williams, 1992). Has no ratio: exact only on tokens of the present policy."""
    return -advantages * logprobs


def grpo_loss(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Policy loss + kl_coefficient * KL - entropy_coefficient * entropy, each token times its coefficient."""
    policy, clipped = _policy_loss(inputs, config)
    objective, kl = policy, None
    if inputs.reference_logprobs is not None:
        kl = ESTIMATORS[config.kl_estimator](inputs.logprobs, inputs.reference_logprobs)
        objective = objective + config.kl_coefficient * kl
    elif config.kl_coefficient != 0:
        raise ValueError(f"loss.kl_coefficient={config.kl_coefficient} needs reference log-probs, and there are none")
    if config.entropy_coefficient != 0:
        objective = objective - config.entropy_coefficient * inputs.entropy

    loss = (inputs.coefficients * objective.double()).sum()
    return LossOutputs(loss, _sums(inputs, loss, policy, clipped, kl))


def _policy_loss(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The policy's loss per token, and where clipping took effect."""
    if config.kind == "policy_gradient":
        loss = policy_gradient(inputs.logprobs, inputs.advantages)
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    if config.kind != "ppo_clip":
        raise ValueError(f"loss.kind={config.kind!r}: allowed are ppo_clip, policy_gradient")
    if not config.decoupled:
        return ppo_clip(inputs.logprobs, inputs.old_logprobs, inputs.advantages, config.clip_epsilon)
    if inputs.proximal_logprobs is None:
        raise ValueError("loss.decoupled=true needs proximal log-probs, and there are none")
    return decoupled_ppo_clip(
        inputs.logprobs,
        inputs.proximal_logprobs,
        inputs.old_logprobs,
        inputs.advantages,
        config.clip_epsilon,
        config.behaviour_weight_cap,
    )


@torch.no_grad()
def _sums(inputs: LossInputs, loss: Tensor, policy: Tensor, clipped: Tensor, kl: Tensor | None) -> LossSums:
    log_ratio = (inputs.logprobs - inputs.old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).double()
    values = [
        loss,
        (inputs.coefficients * policy.double()).sum(),
        inputs.entropy.double().sum(),
        clipped.double().sum(),
        log_ratio.abs().exp().sum(),
        log_ratio.exp().max() if log_ratio.numel() else log_ratio.new_zeros(()),
        log_ratio.new_zeros(()) if kl is None else kl.double().sum(),
    ]
    # One transfer from the device, not seven.
    total, policy_loss, entropy, clip_count, gap, ratio_max, kl_sum = torch.stack(values).tolist()
    return LossSums(
        tokens=inputs.logprobs.numel(),
        loss=total,
        policy_loss=policy_loss,
        entropy=entropy,
        clipped=clip_count,
        logprob_gap=gap,
        ratio_max=ratio_max,
        kl=None if kl is None else kl_sum,
    )
