"""Scripted conversations with the in-process engine, and a random model of a few thousand parameters."""

import asyncio
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt
import tiny_random
import torch

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel

SIZES = [(64, 64), (64, 96), (32, 100), (128, 64)]


@cache
def policy(family: tiny_random.Family = "qwen3_vl") -> PolicyModel:
    return load_policy(str(tiny_random.build(Path(mkdtemp()), family)))


@dataclass
class Episode:
    """A scripted conversation: each turn shows an image (or none) after some text and samples an answer."""

    id: str
    turns: list[tuple[str, tuple[int, int] | None, int]]  # text, image size, max_new_tokens
    seed: int = 0
    temperature: float = 1.0
    greedy: bool = False
    delay: int = 0  # loop iterations before each turn
    ids: list[int] = field(default_factory=list)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)  # indices into ids
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def observe(self, model: PolicyModel, text: str, size: tuple[int, int] | None) -> None:
        image = ""
        if size is not None:
            self.images.append(tiny_random.screenshot(*size, seed=self.seed + len(self.images)))
            image = f"<|vision_start|>{'<|image_pad|>' * model.image_tokens(*size)}<|vision_end|>"
        self.ids += model.encode(f"<|im_start|>user\n{text}{image}<|im_end|>\n<|im_start|>assistant\n")

    def request(self, max_new_tokens: int) -> GenerateRequest:
        return GenerateRequest(
            self.id, list(self.ids), list(self.images), max_new_tokens, self.temperature, self.greedy, self.seed
        )

    def record(self, response: GenerateResponse) -> None:
        self.sampled += range(len(self.ids), len(self.ids) + len(response.output_ids))
        self.ids += response.output_ids
        self.logprobs += response.logprobs
        self.versions += response.versions

    async def run(self, model: PolicyModel, engine: LocalEngine) -> None:
        for text, size, max_new_tokens in self.turns:
            for _ in range(self.delay):
                await asyncio.sleep(0)
            self.observe(model, text, size)
            self.record(await engine.generate(self.request(max_new_tokens)))
        engine.release(self.id)


def serve(model: PolicyModel, episodes: list[Episode], **engine_options: Any) -> list[Episode]:
    async def run_all() -> None:
        engine = LocalEngine(model, **engine_options)
        await asyncio.gather(*(episode.run(model, engine) for episode in episodes))
        await engine.close()

    asyncio.run(run_all())
    return episodes


@torch.no_grad()
def full_forward_logprobs(model: PolicyModel, episode: Episode) -> npt.NDArray[np.float32]:
    """Log-probabilities of the sampled tokens by one plain forward pass over the whole row."""
    pixel_values, grids = model.pixels(episode.images) if episode.images else (None, None)
    logits = model.model(
        input_ids=torch.tensor([episode.ids]),
        position_ids=torch.from_numpy(model.positions(episode.ids, episode.images))[:, None],
        pixel_values=pixel_values,
        image_grid_thw=grids,
    ).logits[0]
    logits[:, list(model.special.banned)] = -torch.inf
    logprobs = (logits / (1.0 if episode.greedy else episode.temperature)).log_softmax(-1)
    return np.array([logprobs[i - 1, episode.ids[i]].item() for i in episode.sampled])


def assert_exact(model: PolicyModel, episodes: list[Episode]) -> None:
    for episode in episodes:
        assert len(episode.sampled) >= len(episode.turns)
        np.testing.assert_allclose(episode.logprobs, full_forward_logprobs(model, episode), atol=1e-4)


def many(n: int, **options: Any) -> list[Episode]:
    """Episodes of two to four turns with different texts, image sizes, lengths and arrival times."""
    return [
        Episode(
            f"e{i}",
            [("x" * (3 * i % 7 + turn), SIZES[(i + turn) % len(SIZES)], 4 + i % 5) for turn in range(2 + i % 3)],
            seed=100 * i,
            delay=i % 3,
            **options,
        )
        for i in range(n)
    ]
