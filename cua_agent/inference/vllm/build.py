"""From settings to an engine whose servers are ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cua_agent.inference.vllm.canary import make_canary, tolerance_for
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.inference.vllm.plan import ServingPlan, rank_limit, slots_for
from cua_agent.models.policy import PolicyModel


class VllmSettings(Protocol):
    """Where the servers are and how long to wait for them; `canary_tolerance` None means: by the policy's dtype."""

    @property
    def servers(self) -> Sequence[str]:
        """Their base URLs."""
        ...

    @property
    def weights_dir(self) -> str | None:
        """A directory that trainer and servers share; None: a temporary one."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Requests at the same time."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """Bound on one request, seconds."""
        ...

    @property
    def server_timeout_s(self) -> float:
        """How long servers that do not answer are waited for, seconds."""
        ...

    @property
    def canary_tolerance(self) -> float | None:
        """Mean log-prob gap that the canary allows."""
        ...


def serving_plan(
    policy: PolicyModel, *, max_length: int, max_images: int, max_staleness: int, tolerance: float | None = None
) -> ServingPlan:
    """What serving `policy` asks of a server. Raises `ServerMismatch` when vLLM cannot serve its adapter."""
    model: Any = policy.model
    rank = int(model.active_peft_config.r) if policy.has_adapter else None
    if rank is not None:
        rank_limit(rank)
    return ServingPlan(
        lora_rank=rank,
        slots=slots_for(max_staleness),
        max_length=max_length,
        images=max_images,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        canary=make_canary(policy),
        tolerance=tolerance_for(policy) if tolerance is None else tolerance,
        adapts_vision=any("visual" in name.split(".") and "lora_" in name for name, _ in policy.trainable_parameters()),
    )


def connect(
    settings: VllmSettings,
    policy: PolicyModel,
    save_weights: Callable[[Path, PolicyModel], None],
    *,
    max_length: int,
    max_images: int,
    max_staleness: int,
    run: str,
) -> VllmEngine:
    """An engine whose servers serve `policy` as version 0, under names that begin with `run`.

    `max_length` bounds a conversation in tokens, `max_images` its screenshots. Waits for servers that are still
    starting. Raises `ServerMismatch`, `CanaryError`, or `InferenceFailure` when no server answers.
    """
    engine = VllmEngine(
        policy,
        settings.servers,
        serving_plan(
            policy,
            max_length=max_length,
            max_images=max_images,
            max_staleness=max_staleness,
            tolerance=settings.canary_tolerance,
        ),
        save_weights,
        patience=Patience(settings.max_in_flight, settings.request_timeout_s, settings.server_timeout_s),
        weights_dir=None if settings.weights_dir is None else Path(settings.weights_dir).expanduser().absolute(),
        run=run,
    )
    try:
        engine.update_weights(0)
    except BaseException:
        engine.discard()
        raise
    return engine
