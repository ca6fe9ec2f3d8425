"""A codec, an engine and an environment that play back what a test wrote down."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from PIL import Image

from cua_agent.actions import Action, Coordinates, Point, Space
from cua_agent.envs.base import Observation, StepResult
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.tasks import CUATask, Probe

_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|endoftext|>")
_PIECES = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")
IMAGE_TOKENS = 3


class ByteCodec:
    """Bytes are tokens 0..255, special tokens follow."""

    coordinates: Coordinates = "relative"
    reply_prefix = ""
    special = SimpleNamespace(
        image_token_id=256 + _SPECIAL.index("<|image_pad|>"), end_of_turn_id=257, stop_ids=(257, 261)
    )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _PIECES.split(text):
            ids += [256 + _SPECIAL.index(piece)] if piece in _SPECIAL else list(piece.encode())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        parts = [bytes([i]) if i < 256 else _SPECIAL[i - 256].encode() for i in ids]
        return b"".join(parts).decode(errors="replace")

    def coordinate_space(self, height: int, width: int) -> Space | None:
        return None if self.coordinates == "relative" else (2 * width, 2 * height)

    def image_tokens(self, height: int, width: int) -> int:
        return IMAGE_TOKENS


def screenshot(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (8, 12), (shade % 256, 0, 0))


def pixels(shade: int = 0) -> np.ndarray:
    return np.asarray(screenshot(shade))


def response(text: str, *, ended: bool = True, version: int = 0) -> GenerateResponse:
    ids = ByteCodec().encode(text + ("<|im_end|>" if ended else ""))
    return GenerateResponse(ids, [-0.5] * len(ids), [version] * len(ids), "stop" if ended else "length")


@dataclass
class ScriptedEngine:
    """Plays `script` back; an exception in it is raised, the last entry repeats for ever."""

    script: Sequence[str | Exception]
    ended: bool = True
    version: int = 7
    requests: list[GenerateRequest] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        entry = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(request)
        await asyncio.sleep(0)
        if isinstance(entry, Exception):
            raise entry
        return response(entry, ended=self.ended, version=self.version)

    def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)

    def update_weights(self, version: int) -> None: ...

    async def close(self) -> None: ...


@dataclass
class ScriptedEnvironment:
    """Every action gives a new shade; `behaviour` may replace what a step returns (or raise)."""

    elements: Mapping[str, Point] = field(default_factory=dict)
    goal: str = ""
    score: float = 0.0
    behaviour: Callable[[Action], StepResult | None] = lambda _: None
    reset_error: Exception | None = None
    actions: list[Action] = field(default_factory=list)

    async def reset(self, task: CUATask, seed: int) -> Observation:
        if self.reset_error:
            raise self.reset_error
        self.actions.clear()
        return Observation(screenshot(), self.goal)

    async def step(self, action: Action) -> StepResult:
        self.actions.append(action)
        return self.behaviour(action) or StepResult(Observation(screenshot(len(self.actions))))

    async def locate(self, target: str) -> Point | None:
        return self.elements.get(target)

    async def compute_reward(self) -> float:
        return self.score

    async def close(self) -> None: ...


class NoValidation:
    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return 0.0


def task(max_steps: int = 5) -> CUATask:
    return CUATask("wifi/on", "Wi-Fi on", "Turn Wi-Fi on", "easy", "wifi", max_steps, NoValidation())
