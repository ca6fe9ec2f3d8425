"""What a configuration means for the memory of a card."""

from __future__ import annotations

from cua_agent.models.memory import TrainingSettings
from trainers.config import TrainConfig


def training_settings(config: TrainConfig, cards: int = 1) -> TrainingSettings:
    """What `config` trains when `cards` processes of one card each train it; see `cua_agent.models.memory`."""
    sharded = config.active_phase in (2, 3)
    budget = config.areal.packed_tokens if sharded else config.optim.micro_batch_tokens
    return TrainingSettings(
        tokens=max(budget, config.model.max_length),  # a longer row goes alone
        cards=cards,
        sharded=sharded,
        dtype=config.model.dtype,
        lora_rank=config.lora.r if config.lora.enabled else None,
        checkpointing=config.loader.gradient_checkpointing,
        offloading=config.loader.offload_activations,
        freeze_vision=config.model.freeze_vision,
        reference=config.loss.kl_coefficient > 0,
        sampling_copy=sharded and config.inference.name == "local",
    )
