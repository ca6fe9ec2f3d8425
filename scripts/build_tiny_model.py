"""Builds the built-in tiny model: tokenizer, architecture, and behaviour cloning.

Two stages. First a good clone: the expert's episodes with wrong detours (shown, not imitated), mixed with screen
descriptions, which teach the vision tower every element's state. Then a mediocre one: the expert errs with a given
probability and the mistakes are imitated, which leaves reinforcement learning something to sharpen.

    python scripts/build_tiny_model.py --out cua_agent/models/tiny_weights --device cuda --workers 15

Minutes on a GPU with 16 cores, hours on a laptop. Uses seeds of use "clone" only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from cua_agent.actions import Direction
from cua_agent.cloning.clone import CloneSchedule, clone
from cua_agent.cloning.demonstrations import Noise
from cua_agent.cloning.examples import DESCRIBE, ExampleStream, Mix, random_screen
from cua_agent.cloning.measure import describe_tally, measure_success
from cua_agent.envs.pocket import state as phone
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.tiny import build_model, build_tokenizer, save_tiny
from cua_agent.parsing import ACTION_NAMES
from cua_agent.tasks import get_eval_tasks, get_training_tasks

MEASURE_EPISODES = 360


def tokenizer_words() -> set[str]:
    """Words that become single tokens: all that pocket can show or ask for."""
    rng = phone.random.Random(0)
    screens = [describe_screen(random_screen(seed, rng)) for seed in range(300)]
    tasks = [task.description for task in get_training_tasks() + get_eval_tasks(split="templates")]
    texts = [*screens, *tasks, DESCRIBE, *phone.DIALOGS, *phone.DIALOGS.values(), *phone.NAMES, *phone.WORDS]
    texts += [*ACTION_NAMES, *Direction, *phone.TIMEOUTS, "Home Back Search textbox"]
    words = {word.strip(".,:%") for text in texts for word in text.split()}
    return {word for word in words if word.isalpha()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw demonstrations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the first stage")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the first stage")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--descriptions", type=float, default=0.3, help="share of screen descriptions")
    parser.add_argument("--mistakes", type=float, nargs="*", default=[0.15], help="mistake rates of the second stage")
    parser.add_argument("--mistake-steps", type=int, default=400)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON overrides of the architecture's sizes")
    return parser.parse_args()


def train_stage(
    policy: PolicyModel, mix: Mix, schedule: CloneSchedule, args: argparse.Namespace, minutes: float
) -> None:
    """One stage of cloning, with a line of progress now and then."""
    stream = ExampleStream(policy, mix, seed=args.seed)
    loader = DataLoader(
        stream, batch_size=None, num_workers=args.workers, prefetch_factor=4, pin_memory=args.device != "cpu"
    )
    started, recent = time.monotonic(), [0.0]

    def report(step: int, loss: float) -> bool:
        recent.append(loss)
        elapsed = time.monotonic() - started
        if step % 100 == 99:
            rate = (step + 1) * mix.batch_size / elapsed
            print(
                f"step {step + 1} loss {sum(recent[-100:]) / 100:.4f} {rate:.0f} examples/s {elapsed:.0f} s", flush=True
            )
        if step % 1000 == 999:
            measure(policy, "  ")
            policy.model.train()
        return elapsed > 60 * minutes

    clone(policy, iter(loader), schedule, report)


def measure(policy: PolicyModel, label: str) -> None:
    for greedy in (True, False):
        tally = asyncio.run(measure_success(policy, MEASURE_EPISODES, greedy=greedy))
        print(f"{label} {'greedy' if greedy else 'sampled'} {describe_tally(tally)}", flush=True)


def main() -> None:
    args = parse_arguments()
    words = tokenizer_words()
    tokenizer = build_tokenizer(sorted(words), sorted(words))
    save_tiny(args.out, build_model(tokenizer, args.seed, **args.sizes), tokenizer)
    policy = load_policy(str(args.out), device="cpu")
    policy.model.to(args.device)
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    print(f"{size:,} parameters, {len(tokenizer)} tokens", flush=True)

    clean = Mix(args.batch, Noise(explore=0.15), descriptions=args.descriptions)
    train_stage(policy, clean, CloneSchedule(args.steps, args.learning_rate), args, args.minutes)
    measure(policy, "clean")
    save_tiny(args.out.with_name(f"{args.out.name}_clean"), policy.model.cpu(), tokenizer)

    good = {name: value.clone() for name, value in policy.model.state_dict().items()}
    for mistakes in args.mistakes:
        policy.model.load_state_dict(good)
        policy.model.to(args.device)
        noisy = Mix(args.batch, Noise(mistake=mistakes))
        train_stage(
            policy, noisy, CloneSchedule(args.mistake_steps, args.learning_rate / 5, warmup=20), args, args.minutes
        )
        measure(policy, f"mistakes {mistakes}")
        suffix = f"_{mistakes}" if len(args.mistakes) > 1 else ""
        save_tiny(args.out.with_name(args.out.name + suffix), policy.model.cpu(), tokenizer)


if __name__ == "__main__":
    main()
