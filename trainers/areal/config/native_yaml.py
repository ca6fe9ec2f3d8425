"""Our configuration for AReaL on its own, which loads model and adapter itself and serves them with vLLM."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from areal.api.cli_args import GRPOConfig, PPOActorConfig, vLLMConfig
from omegaconf import OmegaConf

from cua_agent.models.lora import matching_modules
from cua_agent.models.sources import model_source
from trainers.areal.config.translation import trainer_config
from trainers.config import LossConfig, OptimConfig, TrainConfig

_NO_LORA: dict[str, Any] = {"use_lora": False, "target_modules": []}
_ADAPTER_SLOTS = 2
"""Adapter versions that a server holds besides the `max_staleness` that rollouts may still use."""


def native_config(config: TrainConfig, run_directory: Path) -> GRPOConfig:
    """What `trainer_config` says, and in AReaL's terms what our own engines bring along in the other phases."""
    base = trainer_config(config, run_directory)
    actor = _actor(config, base.actor)
    uses_lora = config.lora.enabled
    gconfig = replace(base.gconfig, n_samples=config.rollout.group_size)  # its workflows play one episode
    return replace(
        base,
        actor=actor,
        ref=replace(actor, optimizer=None, **_NO_LORA) if config.loss.kl_coefficient else None,
        gconfig=gconfig,
        eval_gconfig=gconfig,
        rollout=replace(base.rollout, use_lora=uses_lora, check_trajectory_format=False),
        vllm=vLLMConfig(
            model=model_source(config.model.path),
            seed=config.seed,
            dtype=config.model.dtype,
            max_num_seqs=config.inference.max_batch,
            max_model_len=config.model.max_length,
            enable_lora=uses_lora,
            max_lora_rank=config.lora.r if uses_lora else vLLMConfig.max_lora_rank,
            max_loras=config.rollout.max_staleness + _ADAPTER_SLOTS,
        ),
    )


def caveats(config: TrainConfig) -> list[str]:
    """What AReaL on its own does otherwise than our phases with the same keys, a line each."""
    loss, lora, attention = config.loss, config.lora, config.loader.attn_implementation
    credit = config.advantage.credit
    unpacked = attention != "flash_attention_2"
    lines = {
        "the workflow, the data and the filter of groups without signal are arguments of PPOTrainer.train": True,
        "loss.kl_coefficient: AReaL takes the KL from the reward; ours is a term of the loss": loss.kl_coefficient,
        f"advantage.credit={credit}: AReaL's advantages are those of episodes": credit != "episode",
        "areal.loss: code, not configuration": config.areal.loss != "grpo",
        "optim.warmup_steps: AReaL starts at rate 0, so its first update changes nothing": config.optim.warmup_steps,
        "lora.dropout: AReaL's adapters have none": lora.enabled and lora.dropout,
        "model.freeze_vision: AReaL trains all weights": config.model.freeze_vision and not lora.enabled,
        f"loader.attn_implementation={attention}: packed sequences see each other in AReaL's engine": unpacked,
    }
    return [line for line, applies in lines.items() if applies]


def to_yaml(config: GRPOConfig) -> str:
    """YAML of everything that differs from AReaL's own defaults; its `load_expr_config` gives back an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_changed(config)))


def _actor(config: TrainConfig, base: PPOActorConfig) -> PPOActorConfig:
    lora, optim = config.lora, config.optim
    actor = replace(
        base,
        kl_ctl=config.loss.kl_coefficient,
        kl_estimator=_kl_estimator(config.loss),
        mb_spec=replace(base.mb_spec, max_tokens_per_mb=max(config.areal.packed_tokens, config.model.max_length)),
        optimizer=replace(base.optimizer, warmup_steps_proportion=_warmup(optim, config.max_steps)),
    )
    if not lora.enabled:
        return actor
    modules = adapted_modules(config)
    return replace(actor, use_lora=True, lora_rank=lora.r, lora_alpha=lora.alpha, target_modules=modules)


def _kl_estimator(loss: LossConfig) -> str:
    return loss.kl_estimator if loss.kl_coefficient else PPOActorConfig.kl_estimator


def _warmup(optim: OptimConfig, max_steps: int) -> float:
    """The share of all steps that AReaL rounds down to `optim.warmup_steps`."""
    share = optim.warmup_steps / max_steps
    return min(1.0, math.nextafter(share, 1.0)) if optim.warmup_steps else 0.0


def adapted_modules(config: TrainConfig) -> list[str]:
    """The modules that `lora.target_modules` matches, by whole name: AReaL takes a list, not a regular expression."""
    return matching_modules(model_source(config.model.path), config.lora.target_modules)


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from its class's defaults, as plain data."""
    tree = {}
    for field in fields(value):
        present = getattr(value, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if present != default:
            tree[field.name] = _plain(present)
    return tree


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _changed(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
