"""Builds the built-in tiny model: tokenizer, architecture, and behaviour cloning.

Two stages. First a good clone: the expert's episodes with wrong detours (shown, not imitated), mixed with screen
descriptions, which teach the vision tower every element's state. Then a mediocre one: the expert errs with a given
probability and the mistakes are imitated, which leaves reinforcement learning something to sharpen.

    python scripts/record_miniwob_demos.py --episodes 400 --out demos.npz
    python scripts/build_tiny_model.py --recordings demos.npz --device cuda --workers 15 \\
        --out cua_agent/models/tiny_weights

Minutes on a GPU with 16 cores, hours on a laptop. Uses seeds of use "clone" only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from cua_agent.actions import Direction
from cua_agent.calls.schema import ACTION_NAMES
from cua_agent.cloning.clone import CloneSchedule, clone
from cua_agent.cloning.demonstrations import Noise
from cua_agent.cloning.examples import DESCRIBE, ExampleStream, Mix, random_screen
from cua_agent.cloning.measure import describe_tally, measure_success
from cua_agent.cloning.recordings import RecordingError, Recordings
from cua_agent.envs.pocket import state as phone
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.tiny import build_model, build_tokenizer, save_tiny
from cua_agent.tasks import get_eval_tasks, get_training_tasks

EMPHASISED = ("toggle", "toggle_pair", "alarm", "contact")  # hang on one row's state among many: learned last
MINIWOB_SIZE = (224, 160)  # (height, width) that the policy sees of a page of 210 x 160


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
    parser.add_argument("--init", type=Path, help="go on from this model instead of from random weights")
    parser.add_argument("--recordings", type=Path, help="MiniWoB++ episodes of scripts/record_miniwob_demos.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw demonstrations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the first stage")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the first stage; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--descriptions", type=float, default=0.3, help="share of screen descriptions")
    parser.add_argument("--mistakes", type=float, nargs="*", default=[0.35], help="mistake rates of the second stage")
    parser.add_argument("--mistake-steps", type=int, default=400)
    parser.add_argument("--measure-episodes", type=int, default=360)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON overrides of the architecture's sizes")
    return parser.parse_args()


def train_stage(policy: PolicyModel, stream: ExampleStream, schedule: CloneSchedule, args: argparse.Namespace) -> None:
    """One stage of cloning, with a line of progress now and then."""
    on_gpu = args.device != "cpu"
    loader = DataLoader(stream, batch_size=None, num_workers=args.workers, prefetch_factor=8, pin_memory=on_gpu)
    started, recent = time.monotonic(), [0.0]

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            rate = (step + 1) * stream.mix.batch_size / elapsed
            mean = sum(recent[-100:]) / 100
            print(f"step {step + 1} loss {mean:.4f} {rate:.0f} examples/s {elapsed:.0f} s", flush=True)

    clone(policy, iter(loader), schedule, report)


def main() -> None:
    args = parse_arguments()
    try:
        recordings = Recordings(args.recordings, MINIWOB_SIZE) if args.recordings else None
    except RecordingError as error:
        sys.exit(f"error: {error}")
    torch.set_float32_matmul_precision("high")
    if args.init is None:
        words = sorted(tokenizer_words())
        tokenizer = build_tokenizer(words + (recordings.texts if recordings else []), words)
        save_tiny(args.out, build_model(tokenizer, args.seed, **args.sizes), tokenizer)
    policy = load_policy(str(args.init or args.out))
    policy.model.to(args.device)
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    print(f"{size:,} parameters, {len(policy.tokenizer)} tokens", flush=True)

    def stage(mix: Mix, schedule: CloneSchedule, label: str, directory: Path) -> None:
        train_stage(policy, ExampleStream(policy, mix, args.seed, recordings), schedule, args)
        save_tiny(directory, policy.model, policy.tokenizer)
        for greedy in (True, False) if args.measure_episodes else ():
            tally = asyncio.run(measure_success(policy, args.measure_episodes, greedy=greedy))
            print(f"{label} {'greedy' if greedy else 'sampled'} {describe_tally(tally)}", flush=True)

    if args.steps:
        clean = Mix(args.batch, Noise(explore=0.15), args.descriptions, recordings=0.1, emphasis=EMPHASISED)
        schedule = CloneSchedule(args.steps, args.learning_rate, minutes=args.minutes)
        stage(clean, schedule, "clean", args.out.with_name(f"{args.out.name}_clean"))
    good = {name: value.clone() for name, value in policy.model.state_dict().items()}
    for mistakes in args.mistakes:
        policy.model.load_state_dict(good)
        noisy = Mix(args.batch, Noise(mistake=mistakes), recordings=0.15)
        schedule = CloneSchedule(args.mistake_steps, args.learning_rate / 5, warmup=20)
        suffix = f"_{mistakes}" if len(args.mistakes) > 1 else ""
        stage(noisy, schedule, f"mistakes {mistakes}", args.out.with_name(args.out.name + suffix))


if __name__ == "__main__":
    main()
