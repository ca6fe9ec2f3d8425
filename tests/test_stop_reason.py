"""Whether the token limit cut a turn off is known behind every engine, and wherever rows are sent."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from areal.api import ModelRequest, ModelResponse

from cua_agent.inference.base import GenerateRequest, GenerateResponse, StopReason
from cua_agent.inference.vllm import wire
from cua_agent.trajectory import Outcome, Trajectory, Turn
from trainers.areal.rollout.distributed_rollouts import row_without_pixels
from trainers.areal.rollout.engine_client import EngineClient
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine

REASONS: list[StopReason] = ["stop", "length"]
REQUEST = GenerateRequest("e", [1, 2], [], 3)


@pytest.mark.parametrize("reason", REASONS)
def test_through_areals_engine_in_process(reason: StopReason) -> None:
    answer = GenerateResponse([7], [-0.5], [0], reason)

    async def generate(request: GenerateRequest) -> GenerateResponse:
        return answer

    async def agenerate(request: ModelRequest) -> ModelResponse:
        engine: Any = SimpleNamespace(_engine=SimpleNamespace(generate=generate))
        return await PolicyRolloutEngine.agenerate(engine, request)

    client = EngineClient(SimpleNamespace(agenerate=agenerate))
    assert asyncio.run(client.generate(REQUEST)) == answer


@pytest.mark.parametrize("reason", REASONS)
def test_from_a_vllm_server(reason: StopReason) -> None:
    choice = {
        "token_ids": [7],
        "logprobs": {"content": [{"token_id": 7, "logprob": -0.5}]},
        "finish_reason": reason,
        "weight_versions": [{"version": "v", "start": 0, "end": 1}],
    }
    answer = {"model": "m", "prompt_token_ids": [1, 2], "choices": [choice]}
    assert wire.read_generation(answer).stop_reason == reason


def test_with_the_rows_that_workers_and_clusters_send() -> None:
    none: list[Any] = [np.zeros(0, dtype) for dtype in (np.int64, np.int32, np.float32, np.int32)]
    turn = Turn("", None, "", 0.0, 0.0, truncated=True)
    row = Trajectory(*none, [np.zeros((1, 1, 3), np.uint8)], 0.0, Outcome.FAILURE, "t", "g", "e", 0, (turn,))
    assert row_without_pixels(row).turns == (replace(turn, screenshot=None),)
