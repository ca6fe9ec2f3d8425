"""Log-probabilities of the frozen reference policy, for the KL term of the phases that shard the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.config import TrainConfig
from trainers.grpo.batching import Row, collate, split_rows
from trainers.grpo.forward import score_tokens


class ReferenceModel:
    """Scores tokens under `policy`, a copy from before training; its adapter, if it has one, stays off."""

    def __init__(self, policy: PolicyModel, config: TrainConfig) -> None:
        self._policy = policy
        self._config = config

    @torch.no_grad()
    def logprobs(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """float32 [B, L], at each trained token its log-prob, elsewhere 0."""
        rows = [Row(trajectory, 0.0, 0.0) for trajectory in trajectories]
        lengths = [len(trajectory) for trajectory in trajectories]
        out = torch.zeros(len(rows), max(lengths))
        reference = self._policy.reference() if self._policy.has_adapter else nullcontext()
        with reference:
            for indices in split_rows(self._policy, lengths, self._config.optim.micro_batch_tokens):
                micro = collate(self._policy, [rows[i] for i in indices]).to(self._policy.device)
                scores = score_tokens(self._policy, micro, self._config.rollout.temperature).logprobs.cpu()
                width = micro.loss_mask.shape[1]
                part = torch.zeros(len(indices), width).masked_scatter(micro.loss_mask.cpu(), scores)
                out[indices, :width] = part
        return out
