"""From settings to an engine whose servers are ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential_jitter

from cua_agent.inference.vllm.canary import make_canary, tolerance_for
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.inference.vllm.errors import Refused, ServerMismatch, Unavailable
from cua_agent.inference.vllm.plan import MAX_BANNED, SERVE_COMMAND, ServingPlan, rank_limit, slots_for
from cua_agent.inference.vllm.wire import server_info
from cua_agent.models.policy import PolicyModel

logger = logging.getLogger(__name__)


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
    def sync(self) -> Literal["auto", "adapter", "merged"]:
        """How an adapter is served."""
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
    policy: PolicyModel,
    *,
    max_length: int,
    max_images: int,
    max_staleness: int,
    tolerance: float | None = None,
    merged: bool = False,
) -> ServingPlan:
    """What serving `policy`, its adapter `merged` into the model or beside it, asks of a server. Raises
    `ServerMismatch` when vLLM cannot serve its adapter, or its vocabulary."""
    model: Any = policy.model
    if (banned := len(policy.special.banned)) > MAX_BANNED:
        raise ServerMismatch(
            f"model.path={policy.base_name}: {banned} ids of its vocabulary are never sampled, most of them because no "
            f"token has them; vLLM bans {MAX_BANNED} at most"
        )
    rank = int(model.active_peft_config.r) if policy.has_adapter and not merged else None
    if rank is not None:
        rank_limit(rank)
    return ServingPlan(
        lora_rank=rank,
        slots=slots_for(max_staleness),
        max_length=max_length,
        images=max_images,
        dtype=str(policy.dtype).removeprefix("torch."),
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
    merged = policy.has_adapter and _merges(settings)
    if merged and not all(parameter.is_floating_point() for parameter in policy.model.parameters()):
        raise ServerMismatch(
            f"{settings.servers[0]} serves no adapters, and nothing can be merged into quantised weights: start it for "
            f"adapters ({SERVE_COMMAND})"
        )
    engine = VllmEngine(
        policy,
        settings.servers,
        serving_plan(
            policy,
            max_length=max_length,
            max_images=max_images,
            max_staleness=max_staleness,
            tolerance=settings.canary_tolerance,
            merged=merged,
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


def _merges(settings: VllmSettings) -> bool:
    """Whether adapters are served merged; for `auto` the first server is asked, and waited for."""
    if settings.sync != "auto":
        return settings.sync == "merged"
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_exponential_jitter(initial=0.1, max=3.0, jitter=0.5),
        stop=stop_after_delay(settings.server_timeout_s),
        before_sleep=lambda state: _say_waiting(state, settings.server_timeout_s),
        reraise=True,
    )
    with closing(ControlClient(settings.servers[0])) as client:
        try:
            info = retrying(client.call, server_info())
        except Refused:
            return False  # no server of ours: whoever publishes to it says why
    return info["vllm_config"]["lora_config"] is None


def _say_waiting(state: RetryCallState, seconds: float) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        logger.warning("waiting up to %g s: %s", seconds, state.outcome.exception())
