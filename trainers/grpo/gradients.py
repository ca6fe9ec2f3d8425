"""Loss and gradients of a whole batch, micro-batch by micro-batch."""

from __future__ import annotations

import torch

from cua_agent.models.policy import PolicyModel
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import loss_inputs, reference_logprobs, score_tokens
from trainers.grpo.loss import LossSums, grpo_loss
from trainers.protocol import Batch


def accumulate_gradients(
    policy: PolicyModel, batch: Batch, config: LossConfig, *, temperature: float, micro_batch_tokens: int
) -> LossSums:
    """Add the gradient of the batch's loss to the parameters' `.grad` and return the loss's metrics as sums.

    The result does not depend on `micro_batch_tokens` (up to float rounding). The reference runs only when the KL
    term is on. Raises `ValueError` on a batch that cannot be trained on (see `collate`, `token_coefficients`).
    """
    total = LossSums()
    for micro in micro_batches(policy, batch, config, micro_batch_tokens):
        if not len(micro.trained_at):
            continue
        reference = reference_logprobs(policy, micro, temperature) if config.kl_coefficient else None
        scores = score_tokens(policy, micro, temperature, entropy_gradient=config.entropy_coefficient != 0)
        outputs = grpo_loss(loss_inputs(micro, scores, reference), config)
        torch.autograd.backward(outputs.loss)
        total += outputs.sums
    return total
