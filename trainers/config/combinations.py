"""Values that are fine one by one and cannot be run together: refused before anything is loaded, with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from trainers.config.cluster import cluster_problems
from trainers.config.run import TrainConfig
from trainers.config.validation import ConfigError


def check_combinations(config: TrainConfig) -> None:
    """Raise `ConfigError` on the first combination that cannot work."""
    problems = chain(
        _loader_problems(config),
        _layer_problems(config),
        _model_problems(config),
        _fork_problems(config),
        _vllm_problems(config),
        cluster_problems(config),
    )
    problem = next(problems, None)
    if problem is not None:
        raise ConfigError(problem)


def _sharded(config: TrainConfig) -> bool:
    """Whether AReaL's FSDP engine holds the model."""
    return config.backend == "areal" and config.phase > 1


def _loader_problems(config: TrainConfig) -> Iterator[str]:
    loader, lora = config.loader, config.lora
    if loader.load_in_4bit and loader.name != "unsloth":
        yield "loader.load_in_4bit=true with loader.name=peft: 4-bit weights come from Unsloth; set loader=unsloth"
    if loader.load_in_4bit and not loader.device.startswith("cuda"):
        yield (
            f"loader.load_in_4bit=true with loader.device={loader.device}: 4-bit weights need a CUDA device; "
            "set loader.device=cuda or loader.load_in_4bit=false"
        )
    if loader.load_in_4bit and _sharded(config):
        yield (
            f"loader.load_in_4bit=true with backend=areal phase={config.phase}: FSDP cannot shard 4-bit weights; "
            "set phase=1, backend=legacy or loader.load_in_4bit=false"
        )
    if loader.device_map is not None and _sharded(config):
        yield (
            f"loader.device_map={loader.device_map} with backend=areal phase={config.phase}: FSDP places the model "
            "itself; set loader.device_map=null"
        )
    if loader.name == "unsloth" and not lora.enabled:
        yield "loader.name=unsloth with lora.enabled=false: it trains adapters; set lora.enabled=true or loader=peft"
    if loader.name == "unsloth" and loader.device == "mps":
        yield "loader.name=unsloth with loader.device=mps: set loader.device=cuda or cpu, or loader=peft"
    if loader.name == "unsloth" and loader.device == "cpu" and config.model.observation == "screenshot":
        yield (
            "loader.name=unsloth with loader.device=cpu: Unsloth reads no images on a CPU; set loader.device=cuda, "
            "loader=peft, or model=smollm2 (which is shown the screen in words)"
        )
    if loader.device == "mps" and _sharded(config):
        yield (
            f"loader.device=mps with backend=areal phase={config.phase}: FSDP trains on CPUs and CUDA devices; set "
            "loader.device=cpu, phase=1 or backend=legacy"
        )


def _layer_problems(config: TrainConfig) -> Iterator[str]:
    """How layers are computed, and what is kept of them."""
    loader = config.loader
    if loader.offload_activations and not loader.gradient_checkpointing:
        yield (
            "loader.offload_activations=true with loader.gradient_checkpointing=false: it moves what that keeps; set "
            "loader.gradient_checkpointing=true or loader.offload_activations=false"
        )
    if loader.offload_activations and loader.name == "unsloth":
        yield (
            "loader.offload_activations=true with loader.name=unsloth: its gradient checkpointing offloads by itself; "
            "set loader=peft or loader.offload_activations=false"
        )
    if loader.compile and not loader.device.startswith("cuda"):
        yield (
            f"loader.compile=true with loader.device={loader.device}: compiling gains nothing there; set "
            "loader.device=cuda or loader.compile=false"
        )
    if loader.compile and loader.name == "peft" and loader.attn_implementation != "sdpa":
        yield (
            f"loader.compile=true with loader.attn_implementation={loader.attn_implementation}: layers are compiled "
            "for packed rows; set loader.attn_implementation=sdpa or loader.compile=false"
        )
    if loader.attn_implementation == "flash_attention_2" and config.inference.name == "local":
        yield (
            "loader.attn_implementation=flash_attention_2 with inference.name=local: its cache needs a mask per row; "
            "set loader.attn_implementation=sdpa or inference=vllm"
        )


def _model_problems(config: TrainConfig) -> Iterator[str]:
    if config.model.observation == "text" and not getattr(config.env.world, "DESCRIBES_SCREENS", False):
        yield (
            f"model.observation=text with env.name={config.env.name}: it cannot tell its screens in words; set "
            "env=pocket, or model.observation=screenshot with a model that has eyes"
        )


def _fork_problems(config: TrainConfig) -> Iterator[str]:
    forked, size = config.advantage.forked, config.rollout.group_size
    if forked and not getattr(config.env.world, "FORKS", False):
        yield (
            f"advantage.credit=fork with env.name={config.env.name}: it cannot be copied in the midst of an episode; "
            "set env=pocket, or advantage.credit=gigpo"
        )
    if forked >= size:
        yield (
            f"advantage.branches={forked} with rollout.group_size={size}: allowed: fewer, somebody has to begin at the "
            "start"
        )


def _vllm_problems(config: TrainConfig) -> Iterator[str]:
    if config.inference.name != "vllm":
        return
    from cua_agent.inference.vllm.plan import RANKS
    from cua_agent.inference.vllm.wire import MAX_TEMPERATURE

    if config.rollout.temperature > MAX_TEMPERATURE:
        yield f"rollout.temperature={config.rollout.temperature:g} with inference=vllm: at most {MAX_TEMPERATURE:g}"
    if config.lora.enabled and config.lora.r > RANKS[-1]:
        yield f"lora.r={config.lora.r} with inference=vllm: at most {RANKS[-1]}"
    if config.inference.sync == "merged" and config.loader.load_in_4bit:
        yield (
            "inference.sync=merged with loader.load_in_4bit=true: nothing can be merged into 4 bits; set "
            "inference.sync=adapter or loader.load_in_4bit=false"
        )
