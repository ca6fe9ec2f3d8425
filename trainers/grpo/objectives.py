"""What the policy's loss is, token by token: the objectives of the field as pure functions of log ratios."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.config import LossConfig
from trainers.grpo.correction import Correction, behaviour_correction
from trainers.grpo.ratios import log_ratio, row_means


@dataclass(frozen=True)
class TokenLosses:
    """Of N trained tokens: their `losses` float32 [N] with gradient; bool [N], where the objective's bound on the ratio
    took effect from below (`clipped_low`) and above (`clipped_high`); `correction`: None unless decoupled."""

    losses: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    correction: Correction | None = None


def token_losses(
    logprobs: Tensor, proximal: Tensor | None, behaviour: Tensor, advantages: Tensor, rows: Tensor, config: LossConfig
) -> TokenLosses:
    """The policy loss of each of N tokens; all float32 [N] but `rows`, int64 [N], which numbers their rows.

    The ratio is that of `logprobs` (with gradient) to `behaviour`, the policy that sampled. Decoupled, it is that to
    `proximal`, the policy that the update starts from (without gradient), and each loss is weighted by proximal /
    behaviour within bounds: Hilton et al., "Batch size-invariance for policy optimization" (arXiv 2110.00641), section
    3, as AReaL uses it (arXiv 2505.24298, section 5.2). See `behaviour_correction`. Tokens that it leaves out are not
    part of the ratio of their row either.

    Raises `ValueError` when the decoupled loss gets no `proximal`.
    """
    if config.decoupled and proximal is None:
        raise ValueError("loss.decoupled=true needs proximal log-probs, and there are none")
    start = proximal if config.decoupled and proximal is not None else behaviour
    correction = behaviour_correction(start, behaviour, rows, config) if config.decoupled else None
    counted = None if correction is None else correction.weights != 0
    ratio = log_ratio(logprobs, start)
    if config.ratio_level == "sequence":
        ratio = row_means(ratio, rows, counted)
    losses, low, high = _objective(logprobs, ratio.exp(), advantages, config)
    if correction is None or counted is None:
        return TokenLosses(losses, low, high)
    weighted = torch.where(counted, losses * correction.weights, 0.0)
    return TokenLosses(weighted, low & counted, high & counted, correction)


def _objective(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    lowest, highest = clip_range(config)
    none = torch.zeros_like(ratio, dtype=torch.bool)
    if config.kind == "policy_gradient":
        return policy_gradient(logprobs, advantages), none, none
    if config.kind == "sapo":
        return sapo(ratio, advantages, *config.sapo_temperatures), none, none
    if config.kind == "cispo":
        return cispo(logprobs, ratio, advantages, lowest, highest), ratio < lowest, ratio > highest
    losses = ppo_clip(ratio, advantages, lowest, highest, config.dual_clip)
    too_low = (ratio < lowest) & (advantages < 0)
    too_high = (ratio > highest) & (advantages > 0)
    if config.dual_clip is not None:
        too_high |= (ratio > config.dual_clip) & (advantages < 0)
    return losses, too_low, too_high


def clip_range(config: LossConfig) -> tuple[float, float]:
    """Lowest and highest ratio; an upper range of its own is DAPO's clip-higher (arXiv 2503.14476, section 3.1)."""
    above = config.clip_epsilon if config.clip_epsilon_high is None else config.clip_epsilon_high
    return 1 - config.clip_epsilon, 1 + above


def ppo_clip(ratio: Tensor, advantages: Tensor, lowest: float, highest: float, dual: float | None = None) -> Tensor:
    """-min(ratio * A, clip(ratio, lowest, highest) * A) per token: equation 7 of Schulman et al., "Proximal Policy
    Optimization Algorithms" (arXiv 1707.06347), negated. With ratios of rows it is GSPO (arXiv 2507.18071, equation 5).

    `dual` bounds what a negative advantage costs: at most dual * |A|. Ye et al. (arXiv 1912.09729), equation 5.
    """
    losses = -torch.minimum(ratio * advantages, ratio.clamp(lowest, highest) * advantages)
    return losses if dual is None else torch.minimum(losses, dual * advantages.abs())


def sapo(ratio: Tensor, advantages: Tensor, positive: float, negative: float) -> Tensor:
    """-(4 / t) sigmoid(t (ratio - 1)) A per token, with t = `positive` where A > 0 and `negative` elsewhere: a gate
    that closes smoothly instead of a clip. Gao et al., "Soft Adaptive Policy Optimization" (arXiv 2511.20347),
    equations 5 and 6."""
    temperature = torch.where(advantages > 0, positive, negative)
    return -(4 / temperature) * torch.sigmoid(temperature * (ratio - 1)) * advantages


def cispo(logprobs: Tensor, ratio: Tensor, advantages: Tensor, lowest: float, highest: float) -> Tensor:
    """-sg(clip(ratio, lowest, highest)) A log pi per token: the weight is clipped, and no token loses its gradient.
    MiniMax-M1 (arXiv 2506.13585), equations 4 and 5."""
    return -ratio.detach().clamp(lowest, highest) * advantages * logprobs


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A * log pi per token: REINFORCE (Williams, 1992). Has no ratio: exact only on tokens of the present policy, or
    decoupled, where `behaviour_action=clamp` makes it truncated importance sampling."""
    return -advantages * logprobs
