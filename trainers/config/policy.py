"""The policy: model, loader, adapter, and the engine that samples it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.types import PathText, Regex, ServerUrl
from trainers.config.validation import STRICT


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The model and how it is spoken to."""

    path: PathText = Field(
        default="tiny", description="tiny (built in), smollm2 (from PyPI), a local directory, or a hub id"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="computed and served in; what is trained is float32 always"
    )
    grounding: Literal["target", "coordinates"] = Field(
        default="target", description="name the element, or give its position"
    )
    coordinates: Literal["relative", "absolute"] | None = Field(
        default=None,
        description="how it writes positions: relative, 0 to 1000; absolute, pixels of the resized screenshot; "
        "null: as its family was trained to",
    )
    thinking: bool | None = Field(
        default=None, description="whether it thinks before a call; null: as its chat template has it"
    )
    observation: Literal["screenshot", "text"] = Field(
        default="screenshot", description="what it is shown of a screen: its pixels, or the screen in words"
    )
    prompt: Literal["brief", "full"] = Field(
        default="brief", description="how much of the tool schema the prompt spells out"
    )
    freeze_vision: bool = Field(default=True, description="train the language model only, not the vision tower")
    max_length: int = Field(default=2048, ge=64, description="most tokens of one training row")


@dataclass(frozen=True, config=STRICT)
class LoaderConfig:
    """How the model gets into memory."""

    name: Literal["peft", "unsloth"] = Field(
        default="peft", description="peft: transformers and peft; unsloth: its faster, leaner form of both"
    )
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")] = Field(
        default="cpu", description="cpu, mps, cuda or cuda:N"
    )
    device_map: str | None = Field(
        default=None, description="accelerate's device_map, for models larger than one device"
    )
    load_in_4bit: bool = Field(default=False, description="unsloth: frozen weights in 4 bits (bitsandbytes NF4)")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, more time"
    )
    offload_activations: bool = Field(
        default=False,
        description="with gradient_checkpointing: what it keeps of every layer lies in main memory until the backward "
        "pass",
    )
    compile: bool = Field(
        default=False, description="torch.compile the layers: on a GPU faster updates, the first takes a minute more"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="attention kernel"
    )


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters instead of full weights."""

    enabled: bool = Field(default=False, description="train an adapter; false: all weights")
    r: int = Field(default=16, ge=1, description="rank")
    alpha: int = Field(default=32, ge=1, description="scale of the adapter, divided by r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: Regex = Field(
        default=r".*\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        description="regular expression over module names",
    )


@dataclass(frozen=True, config=STRICT)
class InferenceConfig:
    """The engine that samples the agent's turns."""

    name: Literal["local", "vllm"] = Field(
        default="local", description="local: in process, continuous batching; vllm: vLLM servers over HTTP"
    )
    max_batch: int = Field(default=64, ge=1, description="local: episodes decoded together")
    servers: Annotated[tuple[ServerUrl, ...], Field(min_length=1)] = Field(
        default=("http://127.0.0.1:8000",), description="vllm: addresses of the servers, all of the same model"
    )
    weights_dir: PathText | None = Field(
        default=None,
        description="vllm: where weights are left for the servers, who must see it; null: temporary",
    )
    sync: Literal["auto", "adapter", "merged"] = Field(
        default="auto",
        description="vllm, LoRA: the adapter is served beside the base model, or merged into it; auto: what the server "
        "was started for",
    )
    max_in_flight: int = Field(default=64, ge=1, description="vllm: requests at a time and server")
    request_timeout_s: float = Field(default=120.0, gt=0, description="vllm: longest wait for one answer")
    server_timeout_s: float = Field(
        default=600.0, gt=0, description="vllm: how long a silent server (restarted, say) is waited for"
    )
    canary_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="vllm: largest mean log-prob gap to the trainer; null: 5e-4, on a GPU 1e-2; bfloat16 0.15",
    )
