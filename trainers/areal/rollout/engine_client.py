"""Our inference protocol on top of an AReaL inference engine, in process or remote."""

from __future__ import annotations

from collections.abc import Callable

from areal.api import InferenceEngine as ArealEngine
from areal.api import ModelRequest
from areal.api.cli_args import GenerationHyperparameters

from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure


class EngineClient:
    """Implements `InferenceEngine` by asking `engine`; weights are updated on AReaL's side. `before_turn` is called
    before each request."""

    def __init__(self, engine: ArealEngine, before_turn: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._before_turn = before_turn

    @property
    def version(self) -> int:
        version: int = self._engine.get_version()
        return version

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        self._before_turn()
        response = await self._engine.agenerate(to_areal(request))
        if response.stop_reason not in ("stop", "length"):
            raise InferenceFailure(f"the engine ended a turn with {response.stop_reason!r}")
        return GenerateResponse(
            output_ids=response.output_tokens,
            logprobs=response.output_logprobs,
            versions=response.output_versions,
            stop_reason=response.stop_reason,
        )

    def release(self, conversation_id: str) -> None:
        release = getattr(self._engine, "release", None)  # AReaL's own engines keep nothing between turns
        if release is not None:
            release(conversation_id)

    def update_weights(self, version: int) -> None:
        raise RuntimeError(f"version {version} has to be published through AReaL's engine")

    async def close(self) -> None:
        pass


def to_areal(request: GenerateRequest) -> ModelRequest:
    """The request in AReaL's form; what AReaL has no field for (raw screenshots, the seed) is in `metadata`."""
    return ModelRequest(
        rid=request.conversation_id,
        input_ids=list(request.input_ids),
        gconfig=GenerationHyperparameters(
            n_samples=1,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            greedy=request.greedy,
        ),
        metadata={"images": request.images, "seed": request.seed},
    )


def from_areal(request: ModelRequest) -> GenerateRequest:
    """The inverse of `to_areal`."""
    return GenerateRequest(
        conversation_id=request.rid,
        input_ids=request.input_ids,
        images=request.metadata["images"],
        max_new_tokens=request.gconfig.max_new_tokens,
        temperature=request.gconfig.temperature,
        greedy=request.gconfig.greedy,
        seed=request.metadata["seed"],
    )
