"""The endless stream of training examples for cloning: demonstrations, screen descriptions, recorded MiniWoB++."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cua_agent.cloning.demonstrations import Noise, balanced_task, demonstrate
from cua_agent.cloning.example import Example, as_example
from cua_agent.cloning.recordings import Recordings
from cua_agent.conversation import Codec
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.state import PARENTS, PhoneState, make_state
from cua_agent.models.policy import PolicyModel
from cua_agent.prompts import END_OF_TURN, first_prompt, preamble
from cua_agent.tasks import get_training_tasks, seed_for

DESCRIBE = "Describe the screen."
EMPHASIS = 3
_CHUNKS = 3  # rows of like length are padded together
_RICH_SCREENS = ("Settings", "Clock", "Contacts")  # much to read: described more often than others


@dataclass(frozen=True)
class Mix:
    """What a batch is made of: its size, the expert's noise, and the shares of descriptions and of recordings.

    `emphasis`: categories drawn `EMPHASIS` times as often as the others.
    """

    batch_size: int
    noise: Noise
    descriptions: float = 0.0
    recordings: float = 0.0
    emphasis: tuple[str, ...] = ()


@dataclass(frozen=True)
class CloneBatch:
    """Padded examples: `input_ids`, `labels` int64 [B, L], `attention_mask` bool [B, L], `positions` int64 [3, B, L];
    `images` are stacks uint8 [n, H, W, 3] of equal-sized neighbours, in the order of the rows."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    positions: Tensor
    images: list[Tensor]


class CachingCodec:
    """A codec that remembers what it encoded: demonstrations repeat the same few texts."""

    def __init__(self, policy: PolicyModel) -> None:
        self.special = policy.special
        self.coordinates, self.reply_prefix = policy.coordinates, policy.reply_prefix
        self.coordinate_space = policy.coordinate_space
        self.decode = policy.decode
        self.image_tokens = lru_cache(maxsize=64)(policy.image_tokens)
        self._encode = lru_cache(maxsize=20_000)(lambda text: tuple(policy.encode(text)))

    def encode(self, text: str) -> list[int]:
        """As the codec that it wraps; the same text is encoded once."""
        return list(self._encode(text))


@dataclass
class ExampleStream(IterableDataset[list[CloneBatch]]):
    """Fresh batches for ever, from seeds of use "clone" only; every worker draws its own.

    `recordings` are episodes recorded beforehand (MiniWoB++ needs a browser).
    """

    policy: PolicyModel = field(repr=False)
    mix: Mix
    seed: int = 0
    recordings: Recordings | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[list[CloneBatch]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        codec = CachingCodec(self.policy)
        loop = asyncio.new_event_loop()
        while True:
            examples = sorted(loop.run_until_complete(self._examples(codec, rng)), key=_chunk_key)
            size = -(-len(examples) // _CHUNKS)
            chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
            yield [collate_examples(self.policy, chunk) for chunk in chunks]

    async def _examples(self, codec: Codec, rng: random.Random) -> list[Example]:
        mix, tasks = self.mix, get_training_tasks("pocket")
        recorded = round(mix.recordings * mix.batch_size) if self.recordings else 0
        examples = [self.recordings.example(codec, rng, mix.noise) for _ in range(recorded)] if self.recordings else []
        for _ in range(mix.batch_size - recorded):
            seed = seed_for("clone", rng.randrange(10**9))
            if rng.random() < mix.descriptions:
                examples.append(description_example(codec, seed, rng))
            else:
                task = balanced_task(tasks, rng, mix.emphasis * (EMPHASIS - 1))
                examples.append(as_example(await demonstrate(codec, task, seed, mix.noise, rng)))
        return examples


def description_example(codec: Codec, seed: int, rng: random.Random) -> Example:
    """A screenshot and what is on it, in words: every element's state becomes a label, many per image."""
    state = random_screen(seed, rng)
    image = np.asarray(draw(state))
    prompt = codec.encode(first_prompt(preamble("brief"), DESCRIBE, codec.image_tokens(*image.shape[:2])))
    answer = codec.encode(describe_screen(state) + END_OF_TURN)
    labels = np.array([0] * len(prompt) + [1] * len(answer), dtype=np.int32)
    return Example(np.array(prompt + answer, dtype=np.int64), labels, [image])


def random_screen(seed: int, rng: random.Random) -> PhoneState:
    """Any screen of a seed's phone, also scrolled; dialogs are rare."""
    state = make_state(seed, "shuffled")
    state.screen = rng.choice([*PARENTS, *_RICH_SCREENS * (EMPHASIS - 1)])
    state.contact = rng.choice(state.contacts)
    state.first_row[state.screen] = rng.choice((0, 2))
    if rng.random() < 0.8:
        state.dialog = None
    return state


def _chunk_key(example: Example) -> tuple[tuple[int, ...], int]:
    """Neighbours have images of one size and like lengths."""
    return example.images[0].shape, len(example.input_ids)


def collate_examples(policy: PolicyModel, examples: Sequence[Example]) -> CloneBatch:
    """Pad on the right to the longest example."""
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    input_ids = np.full(shape, policy.special.pad_id, dtype=np.int64)
    labels, attention = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    positions = np.zeros((3, *shape), dtype=np.int64)
    for i, example in enumerate(examples):
        n = len(example.input_ids)
        input_ids[i, :n], labels[i, :n], attention[i, :n] = example.input_ids, example.labels, True
        positions[:, i, :n] = policy.positions(example.input_ids, example.images)
    images = [image for example in examples for image in example.images]
    stacks = [torch.from_numpy(np.stack(list(run))) for _, run in groupby(images, key=lambda image: image.shape)]
    tensors = [torch.from_numpy(array) for array in (input_ids, labels, attention, positions)]
    return CloneBatch(tensors[0], tensors[1], tensors[2], tensors[3], stacks)
