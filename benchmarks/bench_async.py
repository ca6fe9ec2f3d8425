"""Steps per hour of both backends on slow, uneven devices, at the same concurrency.

    python benchmarks/bench_async.py --steps 8 --concurrency 64

Every action of the simulated phone is delayed by a log-normal time (median and 99th percentile in seconds). Both
backends run the same configuration; the first steps, in which the asynchronous one fills its window, are left out.
Beside the measured step stand two bounds that no backend can beat: the environments' (episodes of a step x seconds of
an episode / concurrency) and the processor's (the step of the synchronous backend without any delay).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2
Z_99 = 2.3263478740408408  # standard normal quantile


@dataclass(frozen=True)
class Measured:
    """Medians over the steps after the warm-up."""

    name: str
    step_s: float
    waited_s: float
    train_s: float
    env_utilisation: float
    episodes: float
    staleness_max: int

    @property
    def steps_per_hour(self) -> float:
        return 3600 / self.step_s


def latency(median_s: float, p99_s: float) -> list[str]:
    """The configuration of a log-normal delay with this median and 99th percentile."""
    sigma = math.log(p99_s / median_s) / Z_99
    mean_s = median_s * math.exp(sigma**2 / 2)
    return [
        "env.args.latency.kind=lognormal",
        f"env.args.latency.mean_s={mean_s:.6f}",
        f"env.args.latency.sigma={sigma:.6f}",
    ]


def run(name: str, overrides: list[str], directory: Path) -> Measured:
    """Train in a process of its own and read its metrics."""
    command = [sys.executable, "train.py", *overrides, f"output_dir={directory}", f"run_name={name}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = (directory / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][WARM_UP:]

    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    mean_step_s = statistics.fmean(row["step_s"] for row in rows)
    figures = [median(key) for key in ("rollout_s", "train_s", "env_utilisation", "episodes")]
    return Measured(name, mean_step_s, *figures, staleness_max=max(row["staleness_max"] for row in rows))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="training steps of each run")
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at a time")
    parser.add_argument("--staleness", type=int, default=2, help="bound of the asynchronous backend")
    parser.add_argument("--median", type=float, default=1.0, help="median delay of an action, seconds")
    parser.add_argument("--p99", type=float, default=8.0, help="99th percentile of the delay, seconds")
    parser.add_argument("--phases", type=int, nargs="+", default=[1, 3], help="phases to measure")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_args()
    common = [
        f"max_steps={options.steps}",
        f"rollout.concurrency={options.concurrency}",
        "eval.baseline=false",
        "eval.every_steps=0",
        "eval.episodes=1",
        "logging.tensorboard=false",
        *options.overrides,
    ]
    slow = latency(options.median, options.p99)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        bound = run("no-delay", ["backend=legacy", *common], directory)
        results = [run("legacy", ["backend=legacy", *common, *slow], directory)]
        for phase in options.phases:
            areal = ["backend=areal", f"phase={phase}", f"rollout.max_staleness={options.staleness}"]
            results.append(run(f"areal-phase-{phase}", [*areal, *common, *slow], directory))
    report(results, bound, options.concurrency)


def report(results: list[Measured], bound: Measured, concurrency: int) -> None:
    """The table, and the bounds below it."""
    synchronous = results[0]
    table = Table()
    for column in ("run", "step s", "waited s", "train s", "steps/h", "ratio", "env in use", "staleness max"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for measured in results:
        table.add_row(
            measured.name,
            f"{measured.step_s:.1f}",
            f"{measured.waited_s:.1f}",
            f"{measured.train_s:.1f}",
            f"{measured.steps_per_hour:.0f}",
            f"{synchronous.step_s / measured.step_s:.2f}x",
            f"{100 * measured.env_utilisation:.0f} %",
            str(measured.staleness_max),
        )
    console = Console(width=110)
    console.print(table)
    episode_s = synchronous.env_utilisation * synchronous.waited_s * concurrency / synchronous.episodes
    environments_s = synchronous.episodes * episode_s / concurrency
    console.print(
        f"bounds on a step: environments {environments_s:.1f} s ({episode_s:.1f} s an episode), "
        f"processor {bound.step_s:.1f} s"
    )


if __name__ == "__main__":
    main()
