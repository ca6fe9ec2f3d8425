"""What a run asks of its servers, and whether a server's configuration meets it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cua_agent.inference.vllm.errors import ServerMismatch

if TYPE_CHECKING:
    from cua_agent.inference.vllm.canary import Canary

SERVE_COMMAND = "python -m cua_agent.inference.vllm serve"
TRANSFER_BACKEND = "ipc"
"""How weights come into a server without a file: out of the trainer's memory on the same card, or another one of its
machine."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Rank limits that vLLM allows."""
MAX_BANNED = 1024
"""Tokens that a request may ban on a GPU: with more, vLLM's engine ends (`logit_bias`, seen with 0.32)."""
_UNLIMITED = 999
"""vLLM's own limit on images per prompt when none is set."""


@dataclass(frozen=True)
class ServingPlan:
    """`lora_rank` is None when full weights are trained. A prompt has up to `max_length` tokens and `images` images;
    `slots` adapters serve requests at the same time, also the vision tower's layers where it `adapts_vision`."""

    lora_rank: int | None
    slots: int
    max_length: int
    images: int
    dtype: str
    canary: Canary = field(repr=False)
    tolerance: float
    adapts_vision: bool = False


def check_server(url: str, info: Mapping[str, Any], plan: ServingPlan) -> None:
    """Compare `/server_info` with `plan`. Raises `ServerMismatch` naming the other dtype, or every flag that is
    missing."""
    check_dtype(url, info, plan.dtype)
    flags = list(_missing_flags(info["vllm_config"], info["vllm_env"], plan))
    if flags:
        raise ServerMismatch(f"{url} must be started with {', '.join(flags)}; {SERVE_COMMAND} sets them")


def check_dtype(url: str, info: Mapping[str, Any], dtype: str) -> None:
    """Compare `/server_info` with the trainer's `model.dtype`. Raises `ServerMismatch` naming both."""
    served = info["vllm_config"]["model_config"]["dtype"].removeprefix("torch.")
    if served != dtype:
        raise ServerMismatch(
            f"{url} serves {served}, the trainer's model.dtype is {dtype}: set model.dtype={served}, or start the "
            f"server with --dtype {dtype} ({SERVE_COMMAND} dtype={dtype})"
        )


def _missing_flags(config: Mapping[str, Any], env: Mapping[str, Any], plan: ServingPlan) -> Iterator[str]:
    model, lora = config["model_config"], config["lora_config"]
    if model["logprobs_mode"] != "processed_logprobs":
        yield "--logprobs-mode processed_logprobs"
    if model["max_model_len"] < plan.max_length:
        yield f"--max-model-len {plan.max_length}"
    if image_limit(model) < plan.images:
        yield f"--limit-mm-per-prompt '{{\"image\": {plan.images}}}'"
    if plan.lora_rank is None:
        return
    if not env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        yield "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    if lora is None:
        yield "--enable-lora"
    if lora is None or lora["max_lora_rank"] < plan.lora_rank:
        yield f"--max-lora-rank {rank_limit(plan.lora_rank)}"
    if lora is None or lora["max_loras"] < plan.slots:
        yield f"--max-loras {plan.slots}"
    if plan.adapts_vision and not (lora or {}).get("enable_tower_connector_lora"):
        yield "--enable-tower-connector-lora"


def image_limit(model: Mapping[str, Any]) -> int:
    """Images that a prompt may have, of the `model_config` of `/server_info`."""
    multimodal = model.get("multimodal_config") or {}
    limit: Any = (multimodal.get("limit_per_prompt") or {}).get("image", _UNLIMITED)
    return int(limit["count"] if isinstance(limit, Mapping) else limit)


def rank_limit(rank: int) -> int:
    """The smallest limit that vLLM allows for adapters of `rank`."""
    allowed = next((limit for limit in RANKS if limit >= rank), None)
    if allowed is None:
        raise ServerMismatch(f"lora.r={rank}: vLLM serves adapters of rank up to {RANKS[-1]}")
    return allowed


def slots_for(max_staleness: int) -> int:
    """Adapters in use at the same time: the versions that running requests may have begun with, and a new one."""
    return max_staleness + 2
