"""Tokens per second of the local engine: all conversations together against one after the other.

python benchmarks/bench_engine.py --episodes 64 --turns 4 --new-tokens 10
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np
import torch

from cua_agent.inference.base import GenerateRequest
from cua_agent.inference.local import LocalEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a local directory or a hub id (default: tiny)")
    parser.add_argument("--lora", action="store_true", help="with a fresh LoRA adapter (r=16)")
    parser.add_argument("--episodes", type=int, default=64, help="conversations, all started at once (default: 64)")
    parser.add_argument("--serial-episodes", type=int, default=8, help="conversations of the serial run (default: 8)")
    parser.add_argument("--turns", type=int, default=4, help="turns of a conversation (default: 4)")
    parser.add_argument("--new-tokens", type=int, default=10, help="sampled tokens of a turn, at most (default: 10)")
    parser.add_argument("--text-tokens", type=int, default=32, help="text tokens of a turn (default: 32)")
    parser.add_argument("--screen", type=int, nargs=2, default=(224, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    return parser.parse_args()


async def run_episode(policy: PolicyModel, engine: LocalEngine, name: str, seed: int, args: argparse.Namespace) -> int:
    """One conversation over random text and screenshots; returns how many tokens it sampled."""
    rng = np.random.default_rng(seed)
    height, width = args.screen
    placeholders = [policy.special.image_token_id] * policy.image_tokens(height, width)
    words = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    ids: list[int] = []
    images = []
    sampled = 0
    for _ in range(args.turns):
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ids += [*rng.choice(words, args.text_tokens - 1).tolist(), *placeholders, int(rng.choice(words))]
        request = GenerateRequest(name, ids, images, args.new_tokens, seed=seed)
        response = await engine.generate(request)
        ids = ids + response.output_ids
        sampled += len(response.output_ids)
    engine.release(name)
    return sampled


async def measure(policy: PolicyModel, episodes: int, max_batch: int, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and sampled tokens per second of `episodes` conversations, `max_batch` at a time."""
    engine = LocalEngine(policy, max_batch=max_batch)
    limit = asyncio.Semaphore(max_batch)

    async def one(seed: int) -> int:
        async with limit:
            return await run_episode(policy, engine, f"episode-{seed}", seed, args)

    start = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(seed) for seed in range(episodes))))
    seconds = time.perf_counter() - start
    await engine.close()
    return seconds, tokens / seconds


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    policy = load_policy(args.model, lora=LoraSpec() if args.lora else None)
    asyncio.run(measure(policy, 2, 2, args))  # warm-up
    serial_s, serial = asyncio.run(measure(policy, args.serial_episodes, 1, args))
    batched_s, batched = asyncio.run(measure(policy, args.episodes, args.episodes, args))
    print(f"one at a time : {args.serial_episodes:4d} episodes in {serial_s:6.2f} s, {serial:8.1f} tokens/s")
    print(f"all together  : {args.episodes:4d} episodes in {batched_s:6.2f} s, {batched:8.1f} tokens/s")
    print(f"ratio         : {batched / serial:.1f}x")


if __name__ == "__main__":
    main()
