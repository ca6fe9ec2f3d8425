"""Phase 2: AReaL's engine holds the model and its optimiser, the loss is ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from areal.api import FinetuneSpec
from areal.api.alloc_mode import ModelAllocation
from torch import Tensor

from cua_agent.models.policy import PolicyModel
from trainers.areal.config.translation import actor_config
from trainers.areal.tensors import TensorDict, packed_row_numbers, padded, rows_to_tensors, shifted
from trainers.areal.train.data_parallel import rows_of_rank, summed
from trainers.areal.train.fsdp_actor import FSDPPolicyActor
from trainers.config import TrainConfig
from trainers.distributed.process_group import SINGLE_PROCESS, Communicator, ProcessGroup
from trainers.grpo.batching import weigh_rows
from trainers.grpo.checks import check_batch, check_finite, not_finite, update_not_finite
from trainers.grpo.loss import LossInputs, LossSums, grpo_loss
from trainers.protocol import Batch, LossRecord, Snapshot, StepRecord, TrainerState
from trainers.run.checkpoint import Optimisation, load_checkpoint, take_snapshot


class Phase2Learner:
    """Implements `Learner` through `TrainEngine.train_batch(loss_fn=...)`, with the functions of `trainers.grpo`.

    Every process of `process_group` gets the whole batch and trains on its share of it.
    """

    def __init__(self, policy: PolicyModel, config: TrainConfig, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._config = config
        self._process_group = process_group
        self._policy = policy
        actor = FSDPPolicyActor(
            actor_config(config, process_group.size),
            policy,
            config.optim,
            entropy_gradient=config.loss.entropy_coefficient != 0,
        )
        self._actor = start_actor(actor, config)

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step; one of a batch, loss or gradient that is not finite changes nothing."""
        check_batch(self._policy, batch)
        if unusable := not_finite(batch):
            return StepRecord({}, skipped=True, reason=unusable)
        loss = BatchLoss(batch, self._config)
        tensors = self.tensors(batch)
        self._actor.train()  # dropout, and gradient checkpointing
        try:
            stats = self._actor.train_batch(tensors, loss, loss.weight)
        finally:
            self._actor.eval()
        record = step_record(summed(loss.sums, self._process_group).metrics(), stats)
        if not record.skipped:
            self._actor.lr_scheduler_step()
        return record

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        check_batch(self._policy, batch)
        check_finite(batch)
        loss = BatchLoss(batch, self._config)
        tensors = self.tensors(batch)
        gradients = gradients_of(self._actor, lambda: self._actor.train_batch(tensors, loss, loss.weight))
        return LossRecord(summed(loss.sums, self._process_group).metrics(), gradients)

    def tensors(self, batch: Batch) -> TensorDict:
        """This process's share of the batch in AReaL's form, every per-token entry at the position that predicts its
        token."""
        rows = rows_of_rank(weigh_rows(batch, self._config.loss), self._process_group)
        trajectories = [row.trajectory for row in rows]
        tensors = rows_to_tensors(self._policy, trajectories)
        tensors["advantages"] = padded([torch.from_numpy(row.token_advantages) for row in rows], 0.0)
        coefficients = torch.tensor([row.coefficient for row in rows], dtype=torch.float64)
        tensors["coefficients"] = coefficients[:, None] * tensors["attention_mask"]
        tensors = shifted(tensors)
        if self._config.loss.kl_coefficient:
            [tensors["ref_logp"]] = self._actor.reference_logprobs([tensors])
        return tensors

    def trained_weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole."""
        return self._actor.trained_weights()

    def snapshot(self, state: TrainerState) -> Snapshot:
        return snapshot_of(self._actor, state, self._process_group)

    def load(self, path: Path) -> TrainerState:
        return restore(self._actor, path, self._process_group)

    def close(self) -> None:
        if self._actor.initialized:
            self._actor.destroy()


class BatchLoss:
    """`trainers.grpo.loss` in the form that `train_batch` calls: the loss of one packed micro-batch.

    AReaL scales each by its weight over all weights and adds them up; `weight` is the sum of its tokens' coefficients,
    so dividing by it here gives the batch's loss, whatever the split and the number of processes.
    """

    def __init__(self, batch: Batch, config: TrainConfig) -> None:
        self._config = config.loss
        rows = weigh_rows(batch, config.loss)
        self._total = sum(row.coefficient * int(row.trajectory.loss_mask.sum()) for row in rows)
        self.sums = LossSums()

    def __call__(self, logprobs: Tensor, entropy: Tensor, data: Mapping[str, Any], **_: Any) -> Tensor:
        """`logprobs`, `entropy` float32 [T]: of the token after each of T packed positions."""
        trained = data["trained_at"]
        entry = {name: data[name].reshape(-1)[trained] for name in ("logprobs", "advantages", "coefficients")}
        reference = data["ref_logp"].reshape(-1)[trained] if "ref_logp" in data else None
        inputs = LossInputs(
            logprobs=logprobs.reshape(-1)[trained],
            old_logprobs=entry["logprobs"],
            advantages=entry["advantages"],
            coefficients=entry["coefficients"],
            entropy=entropy.reshape(-1)[trained],
            rows=packed_row_numbers(data)[trained],
            reference_logprobs=reference,
            proximal_logprobs=logprobs.detach().reshape(-1)[trained],
            actions=data["actions"].reshape(-1)[trained].bool() if "actions" in data else None,
        )
        outputs = grpo_loss(inputs, self._config)
        self.sums += outputs.sums
        return outputs.loss * (self._total / self.weight(data))

    def weight(self, data: Mapping[str, Any]) -> Tensor:
        """float64, 0-d: the sum of the trained tokens' coefficients."""
        total: Tensor = (data["coefficients"] * data["loss_mask"].bool()).sum()
        return total


def snapshot_of(actor: FSDPPolicyActor, state: TrainerState, communicator: Communicator) -> Snapshot:
    """What a checkpoint of the actor holds: whole tensors by parameter name. Collective; the first process writes."""
    with actor.masters.in_model():
        return take_snapshot(actor.policy, _optimisation_of(actor, communicator), state)


def restore(actor: FSDPPolicyActor, path: Path, communicator: Communicator) -> TrainerState:
    """Put a checkpoint's weights and optimiser into the actor. Collective. Raises `CheckpointError`."""
    with actor.masters.in_model():
        return load_checkpoint(path, policy=actor.policy, optimisation=_optimisation_of(actor, communicator))


def _optimisation_of(actor: FSDPPolicyActor, communicator: Communicator) -> Optimisation:
    writes = communicator.rank == 0
    return Optimisation(actor.optimizer, actor.lr_scheduler, actor.masters.parameters, writes=writes)


def start_actor(actor: FSDPPolicyActor, config: TrainConfig) -> FSDPPolicyActor:
    """Process group, sharding and optimiser; the model has been handed over already."""
    actor.create_process_group(parallel_strategy=ModelAllocation.from_str(actor.config.backend).parallel)
    steps, batch = config.max_steps, config.rollout.groups_per_step
    actor.initialize(None, FinetuneSpec(total_train_epochs=1, dataset_size=steps * batch, train_batch_size=batch))
    return actor


def gradients_of(actor: FSDPPolicyActor, update: Callable[[], object]) -> dict[str, Tensor]:
    """The unclipped gradients of `update`, AReaL's own; weights and optimiser stay as they are."""
    kept: dict[str, Tensor] = {}

    def keep_gradients() -> dict[str, float]:
        kept.update(actor.gradients())
        actor.optimizer_zero_grad()
        return {"update_successful": 0.0}

    step, actor.optimizer_step = actor.optimizer_step, keep_gradients  # type: ignore[method-assign]
    try:
        update()
    finally:
        actor.optimizer_step = step  # type: ignore[method-assign]
    return kept


def step_record(figures: Mapping[str, float], stats: Mapping[str, float]) -> StepRecord:
    """What an optimiser step of AReaL's engine came to."""
    metrics = {**figures, "grad_norm": stats["grad_norm"], "lr": stats["lr"]}
    skipped = not stats["update_successful"]
    return StepRecord(metrics, skipped, update_not_finite(metrics) or "" if skipped else "")
