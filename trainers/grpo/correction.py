"""Correction for tokens that another policy sampled than the one that an update starts from: an older version, or the
same weights in an engine that rounds differently."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.config import LossConfig
from trainers.grpo.ratios import log_ratio, row_means, row_sums


@dataclass(frozen=True)
class Correction:
    """`weights` float32 [N], without gradient: the factor on each token's loss, 0 on those left out. `cut` bool [N]:
    tokens that a bound took effect on."""

    weights: Tensor
    cut: Tensor


@torch.no_grad()
def behaviour_correction(proximal: Tensor, behaviour: Tensor, rows: Tensor, config: LossConfig) -> Correction:
    """Importance weights from the behaviour to the proximal policy, within the bounds of `config`.

    `proximal`, `behaviour`: log-probs float32 [N] under the policy the update starts from and the one that sampled;
    `rows` int64 [N] numbers their rows. The weight is the ratio r = proximal / behaviour of the token, or the geometric
    mean over its row when ratios of rows are judged. What is held against the bounds is the `behaviour_metric`: r, or
    an estimate of the divergence (Schulman, 2020); of a token (`behaviour_level=token`), summed over its row
    (`sequence`; for r the product) or averaged over it (`geometric`; for r the geometric mean). Beyond the bounds
    `behaviour_action=mask` leaves tokens out (a row's share one fate), and `clamp` moves the weight to the nearest
    bound: truncated importance sampling (IMPALA, arXiv 1802.01561, section 4.1).

    As AReaL's `apply_rejection_sampling`.
    """
    log_weight = log_ratio(proximal, behaviour)
    together = {"token": None, "sequence": row_sums, "geometric": row_means}[config.behaviour_level]
    by_ratio = config.behaviour_metric == "ratio"
    weights = (row_means(log_weight, rows) if together and by_ratio else log_weight).exp()
    judged = _METRICS[config.behaviour_metric](log_weight)
    if together:
        judged = together(judged, rows)
    if by_ratio:
        judged = judged.exp()
    lower, upper = config.behaviour_weight_floor, config.behaviour_weight_cap
    cut = judged > upper  # NaN is not, and shows
    if lower is not None:
        cut |= judged < lower
    bounded = weights.clamp(lower, upper) if config.behaviour_action == "clamp" else torch.zeros_like(weights)
    return Correction(torch.where(cut, bounded, weights), cut)


_METRICS = {
    "ratio": lambda log_weight: log_weight,  # in logs, until rows are put together
    "k1": lambda log_weight: log_weight,
    "k2": lambda log_weight: log_weight.square() / 2,
    "k3": lambda log_weight: (-log_weight).expm1() + log_weight,
}
