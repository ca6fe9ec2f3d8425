"""The vLLM servers of a run: that each answers, and is configured as the run needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.canary import Canary
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import Refused, Unavailable
from cua_agent.inference.vllm.plan import SERVE_COMMAND, ServingPlan, check_server, image_limit, slots_for
from trainers.config import TrainConfig
from trainers.doctor.context import Context
from trainers.doctor.finding import Check, Finding, error, ok

TIMEOUT_S = 30.0
_STATUS = {401: "set VLLM_API_KEY to the server's key", 404: "start it with VLLM_SERVER_DEV_MODE=1"}


def server_checks(config: TrainConfig) -> Iterator[Check]:
    """One check of every server's answer and flags; none without vLLM."""
    if config.inference.name == "vllm":
        for url in config.inference.servers:
            yield Check(f"server {url}", "rollouts on vLLM", partial(server, url))


def server(url: str, context: Context) -> Finding:
    """Whether `url` answers, and has the dtype and every flag that the run needs."""
    with closing(ControlClient(url, TIMEOUT_S)) as client:
        try:
            client.call(wire.Call("GET", wire.HEALTH))
            info = client.call(wire.Call("GET", wire.SERVER_INFO, query={"config_format": "json"}))
        except Unavailable as silence:
            return error(str(silence), f"start it: {SERVE_COMMAND}")
        except Refused as refusal:
            return error(str(refusal), _STATUS.get(refusal.status, f"vLLM 0.32 or newer: {SERVE_COMMAND}"))
    check_server(url, info, plan_of(context.config))
    return ok(in_words(info))


def in_words(info: Mapping[str, Any]) -> str:
    """What a server is configured for, of its `/server_info`."""
    model, lora = info["vllm_config"]["model_config"], info["vllm_config"]["lora_config"]
    adapters = f"{lora['max_loras']} adapters of rank {lora['max_lora_rank']}" if lora else "no adapters"
    dtype = str(model["dtype"]).removeprefix("torch.")
    return f"{dtype}, {model['max_model_len']} tokens, {image_limit(model)} images, {adapters}"


def plan_of(config: TrainConfig) -> ServingPlan:
    """What the run asks of a server, known without its weights. Raises `ModelError`."""
    from cua_agent.models.lora import matching_modules, saved_spec
    from cua_agent.models.sources import find_model

    source, rollout = find_model(config.model.path), config.rollout
    rank = config.lora.r if config.lora.enabled else None
    rank = saved_spec(source.adapter).r if source.adapter is not None else rank
    adapted = matching_modules(source.location, config.lora.target_modules) if rank is not None else []
    return ServingPlan(
        lora_rank=rank,
        slots=slots_for(rollout.max_staleness),
        max_length=config.model.max_length,
        images=rollout.most_screenshots,
        dtype=config.model.dtype,
        canary=Canary([], [], []),
        tolerance=0.0,
        adapts_vision=any("visual" in name.split(".") for name in adapted),
    )
