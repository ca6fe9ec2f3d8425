"""Trained tokens per second of forward + backward, by micro-batch size.

    python benchmarks/bench_train.py --model tiny --episodes 32 --budgets 256 1024 4096 16384

Rows are synthetic conversations of one screenshot a turn with random sampled tokens: the cost does not depend on what
they say. A row's length counts every token, prompts and screenshots included; a trained token is a sampled one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import LossConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.gradients import accumulate_gradients
from trainers.protocol import Batch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a local directory or a hub id (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", type=int, default=0, metavar="R", help="LoRA rank; 0 trains all weights")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=32, help="rows in the batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=4, help="rows have 1 to this many (default: %(default)s)")
    parser.add_argument("--sampled", type=int, default=12, help="trained tokens per turn (default: %(default)s)")
    parser.add_argument("--screen", type=int, nargs=2, default=(224, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 512, 2048, 8192], help="padded tokens")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each; the median counts")
    parser.add_argument("--kl", action="store_true", help="with the KL term, that is a reference forward as well")
    return parser.parse_args()


def episode(policy: PolicyModel, rng: np.random.Generator, turns: int, sampled: int, screen: list[int]) -> Trajectory:
    """A conversation of `turns` turns, each with a screenshot of random pixels and `sampled` random tokens."""
    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.special.banned)
    placeholders = "<|image_pad|>" * policy.image_tokens(*screen)
    prompt = policy.encode(
        f"<|im_start|>user\n<|vision_start|>{placeholders}<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    loss_mask = np.tile(np.repeat([0, 1], [len(prompt), sampled]), turns).astype(np.int32)
    ids = np.tile(np.array([*prompt, *[0] * sampled]), turns)
    ids[loss_mask == 1] = rng.choice(allowed, turns * sampled)
    return Trajectory(
        input_ids=ids,
        loss_mask=loss_mask,
        logprobs=np.zeros(len(ids), np.float32),
        versions=(loss_mask - 1).astype(np.int32),
        images=[rng.integers(0, 256, (*screen, 3), dtype=np.uint8) for _ in range(turns)],
        reward=0.0,
        outcome=Outcome.FAILURE,
        task_id="bench",
        group_id="bench",
        episode_id="bench",
        seed=0,
    )


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median duration of `work`, after one run that is not counted."""
    durations = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def synthetic_batch(policy: PolicyModel, args: argparse.Namespace) -> Batch:
    rng = np.random.default_rng(0)
    turns = rng.integers(1, args.turns + 1, args.episodes).tolist()
    rows = [episode(policy, rng, n, args.sampled, args.screen) for n in turns]
    return Batch(rows, rng.standard_normal(len(rows)).tolist())


def report(policy: PolicyModel, batch: Batch, config: LossConfig, budgets: list[int], repeats: int) -> Table:
    """Measure every budget; `ratio` is the speed relative to the first."""
    tokens = sum(map(len, batch.trajectories))
    trained = sum(int(row.loss_mask.sum()) for row in batch.trajectories)
    table = Table(title=f"{len(batch.trajectories)} rows, {tokens} tokens, {trained} trained")
    for column in ("budget", "micro-batches", "padding", "seconds", "tokens/s", "trained/s", "ratio"):
        table.add_column(column, justify="right")

    def step(budget: int) -> None:
        policy.model.zero_grad()
        accumulate_gradients(policy, batch, config, temperature=1.0, micro_batch_tokens=budget)

    first = None
    for budget in budgets:
        shapes = [micro.input_ids.numel() for micro in micro_batches(policy, batch, config, budget)]
        seconds = median_seconds(partial(step, budget), repeats)
        first = first or seconds
        cells = (budget, len(shapes), f"{1 - tokens / sum(shapes):.0%}", f"{seconds:.2f}")
        rates = (f"{tokens / seconds:,.0f}", f"{trained / seconds:,.0f}", f"{first / seconds:.2f}x")
        table.add_row(*map(str, cells), *rates)
    return table


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    lora = LoraSpec(r=args.lora, alpha=2 * args.lora) if args.lora else None
    policy = load_policy(args.model, dtype=args.dtype, device=args.device, lora=lora, keep_reference=args.kl)
    config = LossConfig(kind="policy_gradient", kl_coefficient=0.01 if args.kl else 0.0)
    batch = synthetic_batch(policy, args)
    Console().print(report(policy, batch, config, args.budgets, args.repeats))


if __name__ == "__main__":
    main()
