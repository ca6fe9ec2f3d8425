"""The learner: turns batches into weight updates with plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cua_agent.models.architecture import set_training
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory
from trainers.config import OptimConfig, TrainConfig
from trainers.grpo.batching import collate, weigh_rows
from trainers.grpo.checks import check_batch, check_finite, not_finite, update_not_finite
from trainers.grpo.forward import loss_inputs, reference_logprobs, score_tokens
from trainers.grpo.gradients import accumulate_gradients
from trainers.grpo.loss import LossSums, grpo_loss
from trainers.grpo.master_weights import MasterWeights
from trainers.protocol import Batch, LossRecord, Snapshot, StepRecord, TrainerState
from trainers.run.checkpoint import Optimisation, load_checkpoint, take_snapshot


def warmup_factor(update: int, warmup_updates: int) -> float:
    """Linear warm-up: the factor on the learning rate of the 0-based `update`; (update + 1) / (warmup_updates + 1)
    until it reaches 1, so that no update is wasted at rate 0."""
    return min(1.0, (update + 1) / (warmup_updates + 1))


class PolicyLearner:
    """AdamW with linear warm-up and gradient clipping on the float32 master weights of `policy`.

    An update of a batch, loss or gradient that is not finite changes neither weights nor optimiser nor schedule.
    """

    def __init__(self, policy: PolicyModel, config: TrainConfig) -> None:
        self._policy = policy
        self._modules = list(policy.model.modules())
        self._config = config
        self._masters = MasterWeights(policy)
        self.optimizer = _adamw(self._parameters(), config.optim)
        warmup = config.optim.warmup_steps * config.optim.updates_per_batch
        self.scheduler = LambdaLR(self.optimizer, lambda update: warmup_factor(update, warmup))

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step. Metrics are those of `LossSums`, `grad_norm` (before clipping) and `lr`; none when the
        batch itself is not finite."""
        check_batch(self._policy, batch)
        if unusable := not_finite(batch):
            return StepRecord({}, skipped=True, reason=unusable)
        with self._training_mode():
            sums = self._accumulate(batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), self._config.optim.max_grad_norm)
        metrics: dict[str, float] = {
            **sums.metrics(),
            "grad_norm": float(norm),
            "lr": float(self.scheduler.get_last_lr()[0]),
        }
        reason = update_not_finite(metrics)
        if reason is None:
            self.optimizer.step()
            self._masters.publish()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepRecord(metrics, skipped=reason is not None, reason=reason or "")

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        """Loss and unclipped gradients at the present weights, which stay as they are."""
        check_batch(self._policy, batch)
        check_finite(batch)
        metrics = self._accumulate(batch).metrics()
        gradients = {
            name: parameter.grad.detach().cpu().clone()
            for name, parameter in self._masters.parameters.items()
            if parameter.grad is not None
        }
        self.optimizer.zero_grad(set_to_none=True)
        return LossRecord(metrics, gradients)

    def trained_weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, float32, as they are now; not copies."""
        return {name: parameter.detach() for name, parameter in self._masters.parameters.items()}

    def snapshot(self, state: TrainerState) -> Snapshot:
        with self._masters.in_model():
            return take_snapshot(self._policy, self._optimisation(), state)

    def load(self, path: Path) -> TrainerState:
        with self._masters.in_model():
            return load_checkpoint(path, policy=self._policy, optimisation=self._optimisation())

    def close(self) -> None:
        pass

    def loss_of(self, trajectory: Trajectory, advantage: float) -> Tensor:
        """The loss of a batch that holds this trajectory alone: 0-d float64, with gradient."""
        loss = self._config.loss
        temperature = self._config.rollout.temperature
        micro = collate(self._policy, weigh_rows(Batch([trajectory], [advantage]), loss)).to(self._policy.device)
        reference = reference_logprobs(self._policy, micro, temperature) if loss.kl_coefficient else None
        scores = score_tokens(self._policy, micro, temperature, entropy_gradient=loss.entropy_coefficient != 0)
        return grpo_loss(loss_inputs(micro, scores, reference), loss).loss

    def _optimisation(self) -> Optimisation:
        return Optimisation(self.optimizer, self.scheduler, self._masters.parameters)

    def _accumulate(self, batch: Batch) -> LossSums:
        self.optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(
            self._policy,
            batch,
            self._config.loss,
            temperature=self._config.rollout.temperature,
            micro_batch_tokens=self._config.optim.micro_batch_tokens,
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return list(self._masters.parameters.values())

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        # Only LoRA dropout cares; rollouts and recorded losses are without it.
        set_training(self._modules, True)
        try:
            yield
        finally:
            set_training(self._modules, False)


def _adamw(parameters: list[torch.nn.Parameter], config: OptimConfig) -> AdamW:
    fused = parameters[0].is_cuda  # one kernel, as in AReaL's engine; on a CPU plain arithmetic, as ever
    return AdamW(parameters, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=fused)
