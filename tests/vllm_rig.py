"""A small policy, what changes it, and requests to the engine that serves it."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import tiny_random
import torch

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel

QUICK = Patience(in_flight=4, request_s=5.0, server_s=1.0)


@cache
def checkpoint() -> str:
    return str(tiny_random.build(Path(mkdtemp())))


@cache
def base() -> PolicyModel:
    return load_policy(checkpoint())


def change(policy: PolicyModel) -> None:
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.05)


def request(conversation: str = "c", seed: int = 5) -> GenerateRequest:
    return GenerateRequest(conversation, [10, 11, 12], [], max_new_tokens=8, seed=seed)


def generate(engine: VllmEngine, *requests: GenerateRequest) -> list[GenerateResponse]:
    async def run() -> list[GenerateResponse]:
        return await asyncio.gather(*(engine.generate(each) for each in requests))

    return asyncio.run(run())
