"""Rollouts of the built-in model through vLLM: without delays, and on slow, uneven devices.

    python -m cua_agent.inference.vllm serve model=tiny max_staleness=2
    python benchmarks/gpu_async.py --server http://127.0.0.1:8000 --out outputs/gpu_async.json

Four runs of train.py with LoRA, 64 episodes a step and at a time: legacy and phase 3, without delays (seconds a step
of rollouts) and with a log-normal delay of every action (steps per hour and environments in use). The first steps, in
which the asynchronous backend fills its window, are left out. Beside the step with delays stand two bounds that no
backend can beat: the environments' (episodes of a step x seconds of an episode / concurrency) and the processor's (the
step without delays).

On a CPU: --device cpu --dtype float32 --groups 2 --group-size 4 --median 0.05 --p99 0.2.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_async import latency

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"rollout_s": 2.5, "ratio": 3.5, "env_utilisation": 0.85}


@dataclass(frozen=True)
class Measured:
    """Means over the steps after the warm-up, and how many they are; `step_s` is of the whole step, `waited_s` what it
    waited for rollouts."""

    steps: int
    step_s: float
    waited_s: float
    train_s: float
    sync_s: float
    env_utilisation: float
    episodes: float
    staleness_max: int
    staleness_mean: float
    logprob_gap: float


def main() -> None:
    """Measure, print, and write the figures."""
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measured(args, Path(temporary))
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--device", default="cuda", help="of the trainer (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of trainer and server (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="of a step (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="episodes of a group (default: %(default)s)")
    parser.add_argument("--staleness", type=int, default=2, help="bound of phase 3 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="measured steps without delays (default: %(default)s)")
    parser.add_argument("--slow-steps", type=int, default=4, help="measured steps with delays; phase 3: twice as many")
    parser.add_argument("--median", type=float, default=1.0, help="median delay of an action, seconds")
    parser.add_argument("--p99", type=float, default=8.0, help="99th percentile of the delay, seconds")
    parser.add_argument("--together", action="store_true", help="both runs with delays at the same time")
    parser.add_argument("--only", choices=["fast", "slow"], help="without delays, or with them")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    return parser.parse_args()


def measured(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All figures: a run's by its name, ratio and bounds."""
    synchronous = ["backend=legacy"]
    asynchronous = ["backend=areal", "phase=3", f"rollout.max_staleness={args.staleness}"]
    figures: dict[str, Any] = {"targets": TARGETS}
    runs: dict[str, Measured] = {}
    if args.only != "slow":
        runs["legacy"] = run("legacy", synchronous, 1, args.steps, args, directory)
        runs["phase 3"] = run("phase-3", asynchronous, args.staleness + 1, args.steps, args, directory)
    if args.only != "fast":
        slow = latency(args.median, args.p99)
        with ThreadPoolExecutor(2 if args.together else 1) as pool:
            steps, warm_up = args.slow_steps, args.staleness + 1
            first = pool.submit(run, "legacy-slow", [*synchronous, *slow], 1, steps, args, directory)
            second = pool.submit(run, "phase-3-slow", [*asynchronous, *slow], warm_up, 2 * steps, args, directory)
            runs |= {"legacy, slow": first.result(), "phase 3, slow": second.result()}
        figures |= against_bounds(runs, args.groups * args.group_size)
    return figures | {name: asdict(each) for name, each in runs.items()}


def against_bounds(runs: dict[str, Measured], concurrency: int) -> dict[str, float]:
    """How much faster phase 3 is than legacy with delays, how much faster anything could be on these environments, and
    the bounds on a step in seconds."""
    synchronous, asynchronous = runs["legacy, slow"], runs["phase 3, slow"]
    episode_s = synchronous.env_utilisation * synchronous.waited_s * concurrency / synchronous.episodes
    environments_s = synchronous.episodes * episode_s / concurrency
    bounds = {
        "ratio": synchronous.step_s / asynchronous.step_s,
        "bound_ratio": synchronous.step_s / environments_s,
        "episode_s": episode_s,
        "bound_environments_s": environments_s,
    }
    return bounds | ({"bound_processor_s": runs["phase 3"].step_s} if "phase 3" in runs else {})


def run(
    name: str, overrides: list[str], warm_up: int, steps: int, args: argparse.Namespace, directory: Path
) -> Measured:
    """Train in a process of its own and read its metrics."""
    command = [
        *(sys.executable, "train.py", f"output_dir={directory}", f"run_name={name}"),
        *("inference=vllm", f"inference.servers=[{args.server}]", "lora.enabled=true", "optim.learning_rate=1e-3"),
        *(f"model.dtype={args.dtype}", f"loader.device={args.device}"),
        *(f"rollout.groups_per_step={args.groups}", f"rollout.group_size={args.group_size}", "rollout.max_refills=0"),
        *(f"rollout.concurrency={args.groups * args.group_size}", f"max_steps={warm_up + steps}"),
        *("eval.baseline=false", "eval.every_steps=0", "eval.episodes=1", "checkpoint.every_steps=0"),
        *("logging.tensorboard=false", *overrides, *args.overrides),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = (directory / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][warm_up:]

    def mean(key: str) -> float:
        values = [row[key] for row in rows if row[key] is not None]  # a step without signal has no log-probs
        return statistics.fmean(values) if values else math.nan

    keys = ("step_s", "rollout_s", "train_s", "sync_s", "env_utilisation", "episodes")
    oldest = max(row["staleness_max"] for row in rows)
    return Measured(len(rows), *map(mean, keys), oldest, mean("staleness_mean"), mean("logprob_gap"))


if __name__ == "__main__":
    main()
