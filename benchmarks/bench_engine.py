"""Tokens per second of inference engines on the same conversations of several turns, with a screenshot each.

    python benchmarks/bench_engine.py
    python benchmarks/bench_engine.py --recording outputs/batches --episodes 64 --engines together generate

Conversations are random, or those of a recorded batch; what an engine samples takes the place of what was sampled
there, and the next turn goes on from that. Engines: ours with one conversation after the other (the first
`--serial-episodes`), ours with all of them together, transformers' `generate` with the same turn of all of them (it
begins every turn anew), and with `--server URL` vLLM's, which
`python -m cua_agent.inference.vllm serve model=tiny lora=false` starts. They take turns; ratios are medians over the
repeats to the first engine named. Processor seconds are of all threads, a server's on this machine included.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from other_engines import plain_model, server_engine, with_generate
from rich.console import Console
from rich.table import Table
from server_processes import children_of, listening_at, processor_seconds

from cua_agent.inference.base import GenerateRequest, InferenceEngine
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Trajectory

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prompt:
    """What a conversation is told before each of its turns, with the screenshots in it."""

    ids: list[int]
    images: list[Image]


@dataclass
class Conversation:
    """One in progress: all its tokens and screenshots, and what it is still to be told."""

    name: str
    prompts: Sequence[Prompt]
    ids: list[int] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)

    def told(self, turn: int) -> None:
        """The next prompt has arrived."""
        self.ids = [*self.ids, *self.prompts[turn].ids]
        self.images = [*self.images, *self.prompts[turn].images]


@dataclass(frozen=True)
class Cost:
    """Of all conversations: sampled tokens, processor seconds, and seconds by the clock."""

    tokens: int
    cpu_s: float
    wall_s: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a local directory or a hub id (default: tiny)")
    parser.add_argument("--recording", type=Path, help="what `python -m trainers.parity record` wrote, or a run")
    parser.add_argument("--episodes", type=int, default=64, help="conversations, all started at once (default: 64)")
    parser.add_argument("--serial-episodes", type=int, default=8, help="conversations of the serial run (default: 8)")
    parser.add_argument("--turns", type=int, default=4, help="turns of a random conversation (default: 4)")
    parser.add_argument("--new-tokens", type=int, default=10, help="sampled tokens of a turn, at most (default: 10)")
    parser.add_argument("--text-tokens", type=int, default=32, help="text tokens of a random prompt (default: 32)")
    parser.add_argument("--screen", type=int, nargs=2, default=(224, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="measured ones, after one that warms up (default: 3)")
    parser.add_argument(
        "--engines", nargs="+", choices=["serial", "together", "generate"], default=["serial", "together"]
    )
    parser.add_argument("--server", metavar="URL", help="vLLM's, as a further engine")
    return parser.parse_args()


def random_prompts(policy: PolicyModel, seed: int, args: argparse.Namespace) -> list[Prompt]:
    """Of one conversation: random text and a screenshot of random pixels a turn."""
    rng = np.random.default_rng(seed)
    height, width = args.screen
    placeholders = [policy.special.image_token_id] * policy.image_tokens(height, width)
    words = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)

    def prompt() -> Prompt:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        text = rng.choice(words, args.text_tokens).tolist()
        return Prompt([*text[:-1], *placeholders, text[-1]], [image])

    return [prompt() for _ in range(args.turns)]


def recorded_prompts(row: Trajectory, policy: PolicyModel) -> list[Prompt]:
    """What stands before each turn of a recorded row."""
    edges = np.flatnonzero(np.diff(row.loss_mask, prepend=0))  # where turns begin and end, one after the other
    starts, ends = edges[::2], [0, *edges[1::2]]
    left = list(row.images)
    prompts = []
    for end, start in zip(ends, starts, strict=False):
        ids = row.input_ids[end:start].tolist()
        wanted = ids.count(policy.special.image_token_id)
        images: list[Image] = []
        while wanted > 0:
            images.append(left.pop(0))
            wanted -= policy.image_tokens(*images[-1].shape[:2])
        prompts.append(Prompt(ids, images))
    return prompts


async def play(engine: InferenceEngine, conversation: Conversation, new_tokens: int) -> int:
    """Play one conversation; how many tokens it sampled."""
    sampled = 0
    for turn in range(len(conversation.prompts)):
        conversation.told(turn)
        request = GenerateRequest(conversation.name, conversation.ids, conversation.images, new_tokens, seed=turn)
        response = await engine.generate(request)
        conversation.ids = conversation.ids + response.output_ids
        sampled += len(response.output_ids)
    engine.release(conversation.name)
    return sampled


async def on_engine(
    build: Callable[[], InferenceEngine], conversations: Sequence[Conversation], new_tokens: int, at_a_time: int
) -> int:
    """Play them on a fresh engine; how many tokens it sampled."""
    engine = build()
    limit = asyncio.Semaphore(at_a_time)

    async def one(conversation: Conversation) -> int:
        async with limit:
            return await play(engine, conversation, new_tokens)

    tokens = sum(await asyncio.gather(*map(one, conversations)))
    await engine.close()
    return tokens


def report(costs: dict[str, list[Cost]]) -> Table:
    """Medians; ratios are of tokens per second, within a repeat."""
    table = Table()
    for column in ("engine", "tokens", "tokens / processor s", "ratio", "s", "tokens / s", "ratio"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    first = next(iter(costs.values()))
    for name, each in costs.items():
        per_cpu = [cost.tokens / cost.cpu_s for cost in each]
        per_s = [cost.tokens / cost.wall_s for cost in each]
        cpu_ratio = [rate * base.cpu_s / base.tokens for rate, base in zip(per_cpu, first, strict=True)]
        ratio = [rate * base.wall_s / base.tokens for rate, base in zip(per_s, first, strict=True)]
        columns = ((cost.tokens for cost in each), per_cpu, cpu_ratio, (cost.wall_s for cost in each), per_s, ratio)
        shapes = (".0f", ".1f", ".2f", ".2f", ".1f", ".2f")
        table.add_row(name, *(f"{statistics.median(c):{shape}}" for c, shape in zip(columns, shapes, strict=True)))
    return table


def prompts_of(args: argparse.Namespace, policy: PolicyModel) -> list[list[Prompt]]:
    """What each conversation is told."""
    if args.recording is None:
        return [random_prompts(policy, seed, args) for seed in range(args.episodes)]
    from trainers.parity.recording import load_recording

    rows = [row for batch in load_recording(args.recording).batches() for row in batch.trajectories]
    return [recorded_prompts(row, policy) for row in rows[: args.episodes]]


def engines_of(args: argparse.Namespace, policy: PolicyModel) -> dict[str, Callable[[str], int]]:
    """Each plays all conversations under the name of the repeat, and tells how many tokens it sampled."""
    prompts, limit = prompts_of(args, policy), args.new_tokens

    def conversations(run: str, count: int | None = None) -> list[Conversation]:
        return [Conversation(f"{run}-{index}", each) for index, each in enumerate(prompts[:count])]

    def play_on(build: Callable[[], InferenceEngine], own: list[Conversation], at_a_time: int) -> int:
        return asyncio.run(on_engine(build, own, limit, at_a_time))

    def generate(model: Any, run: str) -> int:
        return with_generate(model, policy, conversations(run), limit)

    one, all_ = partial(LocalEngine, policy, 1), partial(LocalEngine, policy, len(prompts))
    known: dict[str, Callable[[], Callable[[str], int]]] = {
        "serial": lambda: lambda run: play_on(one, conversations(run, args.serial_episodes), 1),
        "together": lambda: lambda run: play_on(all_, conversations(run), len(prompts)),
        "generate": lambda: partial(generate, plain_model(args.model)),
    }
    engines = {name: known[name]() for name in args.engines}
    if args.server:
        server = partial(server_engine, args.server, policy)
        engines["vllm"] = lambda run: play_on(server, conversations(run), len(prompts))
    return engines


def main() -> None:
    """Measure and print a table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    engines = engines_of(args, load_policy(args.model, freeze_vision=True))
    front = listening_at(args.server) if args.server else []

    def processor() -> float:
        return time.process_time() + processor_seconds([*front, *children_of(front)])

    costs: dict[str, list[Cost]] = {name: [] for name in engines}
    for repeat in range(1 + args.repeats):
        for name, run in engines.items():
            cpu, wall = processor(), time.perf_counter()
            tokens = run(f"{name}-{repeat}")
            cost = Cost(tokens, processor() - cpu, time.perf_counter() - wall)
            costs[name] += [cost] if repeat else []
    Console(width=100).print(report(costs))


if __name__ == "__main__":
    main()
