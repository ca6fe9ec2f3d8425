"""AReaL's rollout engine over ours: the policy is sampled by what `inference` names, on AReaL's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from areal.api import ModelRequest, ModelResponse
from areal.api.cli_args import InferenceEngineConfig
from areal.infra.remote_inf_engine import RemoteInfEngine
from areal.infra.workflow_executor import WorkflowExecutor
from areal.utils import logging as areal_logging
from torch import Tensor

from cua_agent.inference.base import InferenceEngine
from cua_agent.inference.local import LocalEngine
from cua_agent.models.policy import PolicyModel
from trainers.areal.rollout.engine_client import from_areal
from trainers.rollouts.event_loops import answers

_DRAIN_S = 30.0

T = TypeVar("T")


class PolicyRolloutEngine(RemoteInfEngine):  # type: ignore[misc]
    """Any `InferenceEngine` of ours behind AReaL's interface, in process or on vLLM servers.

    Generation goes on while training runs in another thread. `engine` serves `policy`; new weights are loaded into it
    and published. In process they are swapped in between two tokens: turns in progress go
    on with them, and every token carries its own version. On servers, turns in progress end with the adapter they
    began with; without adapters they go on with the new weights, as in process.
    """

    def __init__(self, config: InferenceEngineConfig, engine: InferenceEngine, policy: PolicyModel) -> None:
        super().__init__(config, backend=None)
        self._policy = policy
        self._engine = engine
        self.next_batch: Callable[[], list[dict[str, Any]]] | None = None

    def initialize(
        self,
        engine_id: str | None = None,
        addr: str | list[str] | None = None,  # noqa: ARG002 - AReaL's interface
        train_data_parallel_size: int | None = None,
    ) -> None:
        if self.initialized:  # AReaL's trainer evaluates on the same engine
            return
        self.engine_id = engine_id or "0"
        self.logger = areal_logging.getLogger("PolicyRolloutEngine")
        self.workflow_executor = WorkflowExecutor(config=self.config, inference_engine=self)
        self.workflow_executor.initialize(logger=self.logger, train_data_parallel_size=train_data_parallel_size)
        self._initialized = True

    async def agenerate(self, req: ModelRequest) -> ModelResponse:
        """Sample one turn. Raises `InferenceFailure`."""
        started = time.perf_counter()
        answer = await self._engine.generate(from_areal(req))
        return ModelResponse(
            input_tokens=req.input_ids,
            output_tokens=answer.output_ids,
            output_logprobs=answer.logprobs,
            output_versions=answer.versions,
            stop_reason=answer.stop_reason,
            latency=time.perf_counter() - started,
        )

    def release(self, conversation_id: str) -> None:
        """Forget a conversation; called on AReaL's loop."""
        self._engine.release(conversation_id)

    def pause_generation(self) -> None:
        """Sample no further token until `continue_generation`; servers go on, because publishing to them pauses them
        where it must."""
        if isinstance(self._engine, LocalEngine):
            self._on_loop(self._engine.pause)

    def continue_generation(self) -> None:
        if isinstance(self._engine, LocalEngine):
            self._on_loop(self._engine.resume)

    def update_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Serve `weights` (by parameter name; those that changed) as `version`. Raises what publishing raises."""

        def publish() -> None:
            self._policy.load_trained(weights)
            self._engine.update_weights(version)

        if isinstance(self._engine, LocalEngine):
            self._on_loop(publish)  # between two tokens
        else:
            publish()
        super().set_version(version)

    def set_version(self, version: int) -> None:
        """Nothing: AReaL's trainer counts its steps here; a version is what `update_weights` serves."""

    def prepare_batch(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """The next batch for AReaL's trainer: from `next_batch`, which keeps the staleness bound for slow groups too,
        or, without one, as AReaL collects it."""
        if self.next_batch is not None:
            return self.next_batch()
        batch: list[dict[str, Any]] = super().prepare_batch(*args, **kwargs)
        return batch

    def offload(self) -> None:
        pass

    def onload(self, tags: list[str] | None = None) -> None:
        pass

    def export_stats(self) -> dict[str, float]:
        return {}

    def config_perf_tracer(self, *_: Any, **__: Any) -> None:
        pass

    def save_perf_tracer(self, *_: Any, **__: Any) -> None:
        pass

    def destroy(self) -> None:
        """Stop sampling and AReaL's threads; running episodes end as lost. A loop that is blocked is left to end
        with the process. Safe to call twice."""
        if not self._initialized:
            return
        loop = self._loop
        if loop is not None and loop.is_running():
            if not answers(loop):
                return
            asyncio.run_coroutine_threadsafe(self._engine.close(), loop).result(_DRAIN_S)
        super().destroy()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` on the loop that plays the episodes, and wait for it here; the engine must be initialised."""
        loop = self._loop
        assert loop is not None, "the engine is not initialised"
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread only
            future.cancel()
            raise

    @property
    def _loop(self) -> asyncio.AbstractEventLoop | None:
        return self.workflow_executor.runner._loop if self._initialized else None

    def _on_loop(self, act: Callable[[], T]) -> T:
        """Run `act` between two tokens: on the loop that samples them, or here when there is none."""
        loop = self._loop
        if loop is None or not loop.is_running():
            return act()

        async def between_tokens() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(between_tokens(), loop).result()
