"""Monte-Carlo estimators of KL(policy || reference) from one sample per position (Schulman, "Approximating KL
Divergence", 2020, http://joschu.net/blog/kl-approx.html), with r = reference(x) / policy(x) and x ~ policy."""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to +-20, so that exp stays finite in float32 (and its product with a gradient defined)."""


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """-log r: unbiased, high variance, may be negative. As a loss term its gradient has expectation zero on policy
    (it is the score function): choose k3 when the penalty must pull."""
    return logprobs - reference


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, never negative, low variance; the estimator of DeepSeekMath, equation 4."""
    log_ratio = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.expm1() - log_ratio


ESTIMATORS = {"k1": k1, "k3": k3}
