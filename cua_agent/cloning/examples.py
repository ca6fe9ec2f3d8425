"""Endless streams of training examples for cloning: demonstrations, screen descriptions, recorded episodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cua_agent.actions import Point
from cua_agent.agent import AgentConfig
from cua_agent.cloning.demonstrations import Noise, balanced_task, demonstrate
from cua_agent.cloning.example import Example, as_example
from cua_agent.cloning.recordings import Recordings
from cua_agent.conversation import Codec
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.screens import HEIGHT, WIDTH, elements
from cua_agent.envs.pocket.state import PARENTS, Layout, PhoneState, make_state
from cua_agent.models.policy import PolicyModel
from cua_agent.prompts import END_OF_TURN, first_prompt, system_prompt
from cua_agent.tasks import CUATask, get_training_tasks, seed_for

DESCRIBE = "Describe the screen."
LOCATE = "Where is everything?"
EMPHASIS = 3
_CHUNKS = 3  # rows of like length are padded together
_RICH_SCREENS = ("Settings", "Clock", "Contacts")  # much to read: described more often than others


@dataclass(frozen=True)
class Mix:
    """What a batch is made of: its size, the expert's noise, and the shares of descriptions and of recordings.

    `emphasis`: categories drawn `EMPHASIS` times as often as the others; `tasks` are drawn from (empty: all of
    training), on phones of the given `layout` and `scale`, by an expert that is spoken to as `agent` says.
    """

    batch_size: int
    noise: Noise
    descriptions: float = 0.0
    recordings: float = 0.0
    emphasis: tuple[str, ...] = ()
    tasks: tuple[CUATask, ...] = ()
    agent: AgentConfig = AgentConfig()  # noqa: RUF009 - it is frozen
    layout: Layout = "shuffled"
    scale: int = 1


@dataclass(frozen=True)
class CloneBatch:
    """Padded examples: `input_ids`, `labels` int64 [B, L], `attention_mask` bool [B, L], `positions` int64 [3, B, L];
    `pixels` and `grids` are what `PolicyModel.image_bytes` gives for the images of all rows in order (None without)."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    positions: Tensor
    pixels: Tensor | None
    grids: Tensor | None


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
            yield in_chunks(self.policy, loop.run_until_complete(self._examples(codec, rng)))

    async def _examples(self, codec: Codec, rng: random.Random) -> list[Example]:
        mix = self.mix
        tasks, phone = mix.tasks or get_training_tasks("pocket"), PocketEnvironment(mix.layout, mix.scale)
        recorded = round(mix.recordings * mix.batch_size) if self.recordings else 0
        examples = [self.recordings.example(codec, rng, mix.noise) for _ in range(recorded)] if self.recordings else []
        for _ in range(mix.batch_size - recorded):
            seed = seed_for("clone", rng.randrange(10**9))
            if rng.random() < mix.descriptions:
                examples.append(description_example(codec, seed, rng, mix.agent, mix.scale))
            else:
                task = balanced_task(tasks, rng, mix.emphasis * (EMPHASIS - 1))
                row = await demonstrate(codec, task, seed, mix.noise, rng, mix.agent, phone)
                examples.append(as_example(row))
        return examples


@dataclass
class RecordedStream(IterableDataset[list[CloneBatch]]):
    """Batches of the same `examples` for ever, all of them once before any again; every worker in an order of its
    own."""

    policy: PolicyModel = field(repr=False)
    examples: Sequence[Example] = field(repr=False)
    batch_size: int
    seed: int = 0

    def __iter__(self) -> Iterator[list[CloneBatch]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        waiting: list[Example] = []
        while True:
            while len(waiting) < self.batch_size:
                waiting += rng.sample(self.examples, len(self.examples))
            batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            yield in_chunks(self.policy, batch)


def in_chunks(policy: PolicyModel, examples: Sequence[Example]) -> list[CloneBatch]:
    """A batch in a few parts, each of rows of like length."""
    ordered = sorted(examples, key=_chunk_key)
    size = -(-len(ordered) // _CHUNKS)
    return [collate_examples(policy, ordered[start : start + size]) for start in range(0, len(ordered), size)]


def description_example(
    codec: Codec,
    seed: int,
    rng: random.Random,
    agent: AgentConfig = AgentConfig(),  # noqa: B008 - it is frozen
    scale: int = 1,
) -> Example:
    """A screenshot and what is on it, in words: every element's state becomes a label, many per image. A model that
    gives positions is asked for those of all elements half of the time."""
    state = random_screen(seed, rng)
    image = np.asarray(draw(state, scale))
    located = agent.grounding == "coordinates" and rng.random() < 0.5
    question, answer = (LOCATE, _places(state, codec, image)) if located else (DESCRIBE, describe_screen(state))
    system = system_prompt(agent.prompt, agent.grounding, codec.coordinates or "relative")
    text = first_prompt(system, question, codec.image_tokens(*image.shape[:2]), prefix=codec.reply_prefix)
    prompt, reply = codec.encode(text), codec.encode(answer + END_OF_TURN)
    labels = np.array([0] * len(prompt) + [1] * len(reply), dtype=np.int32)
    return Example(np.array(prompt + reply, dtype=np.int64), labels, [image])


def _places(state: PhoneState, codec: Codec, image: np.ndarray) -> str:
    """Every element and its centre, as the model writes positions."""
    space = codec.coordinate_space(*image.shape[:2])
    points = [(element.name, Point.at_pixel(*element.centre, WIDTH, HEIGHT)) for element in elements(state)]
    places = [(name, point.to_pixels(*space) if space else (point.x, point.y)) for name, point in points]
    return ", ".join(f"{name} [{x}, {y}]" for name, (x, y) in places)


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
    return example.images[0].shape if example.images else (), len(example.input_ids)


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
    pixels, grids = policy.image_bytes(images) if images else (None, None)
    tensors = [torch.from_numpy(array) for array in (input_ids, labels, attention, positions)]
    return CloneBatch(tensors[0], tensors[1], tensors[2], tensors[3], pixels, grids)
