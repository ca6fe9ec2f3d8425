"""Our configuration in AReaL's terms."""

from __future__ import annotations

from pathlib import Path

from areal.api.cli_args import InferenceEngineConfig, MicroBatchSpec, OptimizerConfig, PPOActorConfig

from cua_agent.models.loaders import model_source
from trainers.config import TrainConfig

UNLIMITED = 10**12


def rollout_config(config: TrainConfig, run_directory: Path, *, evaluation: bool = False) -> InferenceEngineConfig:
    """AReaL's unit of a rollout is our group: the bound and the batch size count groups."""
    rollout = config.rollout
    in_flight = (rollout.max_staleness + 1) * rollout.groups_per_step
    episodes = max(config.eval.episodes, 1)
    return InferenceEngineConfig(
        experiment_name=experiment_name(config),
        trial_name=trial_name(config),
        fileroot=str(run_directory / "areal"),
        backend="vllm:d1",
        max_concurrent_rollouts=episodes if evaluation else in_flight,
        consumer_batch_size=episodes if evaluation else rollout.groups_per_step,
        max_head_offpolicyness=UNLIMITED if evaluation else rollout.max_staleness,
        queue_size=4 * max(in_flight, episodes),
        check_trajectory_format=True,
        tokenizer_path=model_source(config.model.path),
    )


def actor_config(config: TrainConfig) -> PPOActorConfig:
    """The train engine: AdamW, precision, clipping, packing."""
    optim = config.optim
    return PPOActorConfig(
        experiment_name=experiment_name(config),
        trial_name=trial_name(config),
        path=model_source(config.model.path),
        backend="fsdp:d1",
        attn_impl=config.loader.attn_implementation,
        dtype=config.model.dtype,
        optimizer_dtype=config.model.dtype,
        grad_reduce_dtype="float32",
        temperature=config.rollout.temperature,
        disable_dropout=False,
        gradient_checkpointing=False,
        use_lora=False,  # the adapter is in the model that is handed over
        weight_update_mode="disk",
        mb_spec=MicroBatchSpec(max_tokens_per_mb=config.areal.packed_tokens),
        optimizer=OptimizerConfig(
            type="adam",
            lr=optim.learning_rate,
            beta1=optim.betas[0],
            beta2=optim.betas[1],
            eps=1e-8,
            weight_decay=optim.weight_decay,
            gradient_clipping=optim.max_grad_norm,
            lr_scheduler_type="constant",
            warmup_steps_proportion=0.0,
        ),
    )


def experiment_name(config: TrainConfig) -> str:
    return config.experiment


def trial_name(config: TrainConfig) -> str:
    return f"seed{config.seed}"
