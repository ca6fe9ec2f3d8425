"""Steps per hour of the backends at the same concurrency, with the delays of real devices or without any.

    python benchmarks/bench_async.py --median 0 --phases 1 2 3 3:0 --repeats 3    # no delays
    python benchmarks/bench_async.py --concurrency 64 --repeats 3                 # slow, uneven devices

Every action of the simulated phone is delayed by a log-normal time (median and 99th percentile in seconds). All runs
have the same configuration; the first steps, in which the asynchronous backend fills its window, are left out. A phase
is given as `3`, or as `3:0` for a bound of its own on the staleness. The runs of a repeat come one after the other, and
ratios are taken within it.

With delays two bounds stand beside the ratio: the environments' (episodes of a step x seconds of an episode /
concurrency) and the processor's (the step of the first phase without any delay); and the loop that plays one episode
after the other, which is calculated (episodes of a step x seconds of an episode + training).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2
Z_99 = 2.3263478740408408  # standard normal quantile


@dataclass(frozen=True)
class Measured:
    """The steps of a run after the warm-up: the mean step, the medians of its parts, seconds."""

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


@dataclass(frozen=True)
class Repeat:
    """Runs that are compared with each other: the synchronous one, then the others. `undelayed` is, where there are
    delays, the first of the others without any."""

    runs: tuple[Measured, ...]
    undelayed: Measured | None
    concurrency: int

    @property
    def episode_s(self) -> float:
        """Seconds of an episode, of the synchronous run."""
        legacy = self.runs[0]
        return legacy.env_utilisation * legacy.waited_s * self.concurrency / legacy.episodes

    @property
    def one_by_one_s(self) -> float:
        """A step of a loop that plays one episode after the other, then trains."""
        return self.runs[0].episodes * self.episode_s + self.runs[0].train_s

    @property
    def bounds_s(self) -> tuple[float, float]:
        """The environments' and the processor's bound on a step."""
        environments_s = self.runs[0].episodes * self.episode_s / self.concurrency
        return environments_s, 0.0 if self.undelayed is None else self.undelayed.step_s


def latency(median_s: float, p99_s: float) -> list[str]:
    """The configuration of a log-normal delay with this median and 99th percentile; none for a median of 0."""
    if not median_s:
        return []
    sigma = math.log(p99_s / median_s) / Z_99
    mean_s = median_s * math.exp(sigma**2 / 2)
    return [
        "env.args.latency.kind=lognormal",
        f"env.args.latency.mean_s={mean_s:.6f}",
        f"env.args.latency.sigma={sigma:.6f}",
    ]


def run(name: str, overrides: Sequence[str]) -> Measured:
    """Train in a process of its own and read its metrics."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "train.py", *overrides, f"output_dir={directory}", "run_name=run"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][WARM_UP:]

    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    mean_step_s = statistics.fmean(row["step_s"] for row in rows)
    figures = [median(key) for key in ("rollout_s", "train_s", "env_utilisation", "episodes")]
    return Measured(name, mean_step_s, *figures, staleness_max=max(row["staleness_max"] for row in rows))


def keys_of(phase: str, staleness: int) -> list[str]:
    """`3` or `3:0` as keys of train.py."""
    number, _, own = phase.partition(":")
    return ["backend=areal", f"phase={number}", f"rollout.max_staleness={own or staleness}"]


def measure(options: argparse.Namespace) -> Repeat:
    """One repeat."""
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
    runs = [run("legacy", ["backend=legacy", *common, *slow])]
    for phase in options.phases:
        runs.append(run(f"areal phase {phase}", [*keys_of(phase, options.staleness), *common, *slow]))
    first = options.phases[0]
    alone = [*keys_of(first, options.staleness), *common]
    undelayed = run(f"areal phase {first} without delays", alone) if slow else None
    return Repeat(tuple(runs), undelayed, options.concurrency)


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range where there are several values."""
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def report(repeats: Sequence[Repeat]) -> None:
    """The table of medians over repeats, and the bounds below it."""
    table = Table()
    for column in ("run", "step s", "waited s", "train s", "steps/h", "ratio", "env in use", "staleness max"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for runs in zip(*(repeat.runs for repeat in repeats), strict=True):
        ratios = [repeat.runs[0].step_s / mine.step_s for repeat, mine in zip(repeats, runs, strict=True)]
        table.add_row(
            runs[0].name,
            spread([each.step_s for each in runs], "{:.1f}"),
            spread([each.waited_s for each in runs], "{:.1f}"),
            spread([each.train_s for each in runs], "{:.1f}"),
            spread([each.steps_per_hour for each in runs], "{:.0f}"),
            spread(ratios, "{:.2f}"),
            spread([100 * each.env_utilisation for each in runs], "{:.0f} %"),
            str(max(each.staleness_max for each in runs)),
        )
    console = Console(width=170)
    console.print(table)
    if repeats[0].undelayed is None:
        return
    for repeat in repeats:
        legacy_s, (environments_s, processor_s) = repeat.runs[0].step_s, repeat.bounds_s
        allowed = legacy_s / max(environments_s, processor_s)
        console.print(
            f"bounds on a step: environments {environments_s:.1f} s ({repeat.episode_s:.1f} s an episode), processor "
            f"{processor_s:.1f} s: at most {allowed:.2f}x legacy"
        )
        for mine in repeat.runs[1:]:
            console.print(
                f"  {mine.name}: {legacy_s / mine.step_s:.2f}x legacy, {legacy_s / mine.step_s / allowed:.2f} of the "
                f"bound, {repeat.one_by_one_s / mine.step_s:.1f}x one episode after the other"
            )


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="training steps of each run")
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at a time")
    parser.add_argument("--staleness", type=int, default=2, help="bound of the asynchronous backend")
    parser.add_argument("--median", type=float, default=1.0, help="median delay of an action, seconds; 0: no delays")
    parser.add_argument("--p99", type=float, default=8.0, help="99th percentile of the delay, seconds")
    parser.add_argument("--phases", nargs="+", default=["1", "3"], help="phases to measure; 3:0 has a bound of its own")
    parser.add_argument("--repeats", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_intermixed_args()
    repeats: list[Repeat] = []
    for _ in range(options.repeats):
        repeats.append(measure(options))
        report(repeats)
        if options.out is not None:
            options.out.write_text(json.dumps([asdict(repeat) for repeat in repeats], indent=1) + "\n")


if __name__ == "__main__":
    main()
