"""Keys that are legal one by one and cannot be run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.config.validation import ConfigError

if TYPE_CHECKING:
    from trainers.config.run import TrainConfig


def check_combinations(config: TrainConfig) -> None:
    """Raises `ConfigError` naming the keys and the way out."""
    if config.inference.name == "vllm":
        _check_vllm(config)


def _check_vllm(config: TrainConfig) -> None:
    from cua_agent.inference.vllm.plan import RANKS
    from cua_agent.inference.vllm.wire import MAX_TEMPERATURE

    if config.rollout.temperature > MAX_TEMPERATURE:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature:g} with inference=vllm: at most {MAX_TEMPERATURE:g}"
        )
    if config.lora.enabled and config.lora.r > RANKS[-1]:
        raise ConfigError(f"lora.r={config.lora.r} with inference=vllm: at most {RANKS[-1]}")
