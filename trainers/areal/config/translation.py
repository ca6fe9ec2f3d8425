"""Our configuration in AReaL's terms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from areal.api.cli_args import (
    ClusterSpecConfig,
    EvaluatorConfig,
    GenerationHyperparameters,
    GRPOConfig,
    InferenceEngineConfig,
    MicroBatchSpec,
    NameResolveConfig,
    NormConfig,
    OptimizerConfig,
    PPOActorConfig,
    RecoverConfig,
    RejectionSamplingConfig,
    SaverConfig,
    StatsLoggerConfig,
    TensorBoardConfig,
    TrainDatasetConfig,
    ValidDatasetConfig,
)
from areal.utils.constants import PROX_LOGP_METHOD_LOGLINEAR

from cua_agent.models.sources import model_source
from trainers.config import LossConfig, TrainConfig

_ROUNDING = 1e-12
"""AReaL adds an epsilon to a group's deviation; ours has none, because groups without deviation are filtered."""


def rollout_config(config: TrainConfig, run_directory: Path) -> InferenceEngineConfig:
    """AReaL's unit of a rollout is our group: the bound and the batch size count groups."""
    rollout = config.rollout
    in_flight = (rollout.max_staleness + 1) * rollout.groups_per_step
    return InferenceEngineConfig(
        experiment_name=experiment_name(config),
        trial_name=trial_name(config),
        fileroot=str(run_directory / "areal"),
        backend="vllm:d1",
        max_concurrent_rollouts=in_flight,
        consumer_batch_size=rollout.groups_per_step,
        max_head_offpolicyness=rollout.max_staleness,
        queue_size=4 * in_flight,
        check_trajectory_format=True,
        tokenizer_path=model_source(config.model.path),
    )


def actor_config(config: TrainConfig, processes: int = 1) -> PPOActorConfig:
    """The train engine: AdamW, precision, clipping, packing; sharded over `processes`."""
    optim = config.optim
    return PPOActorConfig(
        experiment_name=experiment_name(config),
        trial_name=trial_name(config),
        path=model_source(config.model.path),
        backend=f"fsdp:d{processes}",
        attn_impl=config.loader.attn_implementation,
        dtype=config.model.dtype,
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


def ppo_actor_config(config: TrainConfig, processes: int = 1) -> PPOActorConfig:
    """Phase 3: the train engine with AReaL's advantages and loss."""
    loss, decoupled = config.loss, config.loss.decoupled
    return replace(
        actor_config(config, processes),
        ppo_n_minibatches=1,
        eps_clip=loss.clip_epsilon,
        eps_clip_higher=loss.clip_epsilon_high,
        c_clip=loss.dual_clip,
        importance_sampling_level=loss.ratio_level,
        use_sapo_loss=loss.kind == "sapo",
        sapo_tau_pos=loss.sapo_temperatures[0],
        sapo_tau_neg=loss.sapo_temperatures[1],
        kl_ctl=0.0,  # the KL is a term of the loss, not of the reward
        use_decoupled_loss=decoupled,
        prox_logp_method=PROX_LOGP_METHOD_LOGLINEAR,  # no forward pass for it: see `proximal_logprobs`
        rejection_sampling=_rejection(loss) if decoupled else None,
        reward_norm=reward_norm(config, config.rollout.group_size),
        adv_norm=None,
        reward_clip=math.inf,
        mask_no_eos_with_zero=False,
        max_new_tokens=config.rollout.max_new_tokens,
    )


def reward_norm(config: TrainConfig, group_size: int) -> NormConfig:
    """Group-relative rewards as `trainers.grpo.advantages` has them: population deviation, or none."""
    return NormConfig(
        mean_level="group",
        mean_leave1out=config.advantage.baseline == "leave_one_out",
        std_level="group" if config.advantage.normalise_by_std else None,
        std_unbiased=False,
        eps=_ROUNDING,
        group_size=group_size,
    )


def trainer_config(config: TrainConfig, run_directory: Path, processes: int = 1) -> GRPOConfig:
    """Phase 3: the whole of AReaL's trainer, its own files in `run_directory`/areal."""
    root = str(run_directory / "areal")
    names = {"experiment_name": experiment_name(config), "trial_name": trial_name(config)}
    files = {**names, "fileroot": root}
    batch = config.rollout.groups_per_step
    return GRPOConfig(
        **names,
        seed=config.seed,
        total_train_epochs=1,
        total_train_steps=config.max_steps,
        tokenizer_path=model_source(config.model.path),
        cluster=ClusterSpecConfig(
            fileroot=root,
            n_nodes=1,
            n_gpus_per_node=processes,
            name_resolve=NameResolveConfig(type="nfs", nfs_record_root=f"{root}/names"),
        ),
        gconfig=GenerationHyperparameters(
            n_samples=1,  # a whole group is one rollout of ours
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
        ),
        train_dataset=TrainDatasetConfig(path="tasks", type="rl", batch_size=batch, shuffle=False),
        valid_dataset=ValidDatasetConfig(path="tasks", type="rl", batch_size=batch),
        rollout=rollout_config(config, run_directory),
        actor=ppo_actor_config(config, processes),
        saver=SaverConfig(**files, freq_steps=config.checkpoint.every_steps or None),
        evaluator=EvaluatorConfig(**files, freq_steps=config.eval.every_steps or None),
        recover=RecoverConfig(**files, mode="disabled"),
        stats_logger=StatsLoggerConfig(**files, tensorboard=TensorBoardConfig(path=f"{root}/tensorboard")),
    )


def experiment_name(config: TrainConfig) -> str:
    """What AReaL calls the experiment."""
    return config.experiment


def trial_name(config: TrainConfig) -> str:
    """What AReaL calls the run."""
    return f"seed{config.seed}"


def _rejection(loss: LossConfig) -> RejectionSamplingConfig:
    return RejectionSamplingConfig(
        level="token" if loss.behaviour_level == "token" else "sequence",
        action=loss.behaviour_action,
        metric=loss.behaviour_metric if loss.behaviour_metric == "ratio" else f"kl_{loss.behaviour_metric}",
        agg="sum" if loss.behaviour_level == "sequence" else "mean",
        upper=loss.behaviour_weight_cap,
        lower=loss.behaviour_weight_floor,
    )
