"""What recording costs a run: steps per hour and processor seconds with and without it.

    python benchmarks/bench_recording.py --repeats 3 --steps 8 --watching backend=legacy

Runs of the same seed in pairs, one after the other, in turns the one or the other first. Without means no episodes, no
screens and no wall. `--watching` has the wall open in a headless browser of this machine meanwhile; its processor
seconds and those of the pages' server are not counted, what they take from the run is in its steps per hour.
The interval is that of a bootstrap over the steps: a step of one run and the same step of the other are drawn together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cua_agent.envs.web.browser import DEFAULT_BROWSER

ROOT = Path(__file__).resolve().parents[1]
OFF = ("logging.record_groups=0", "logging.record_evaluations=false", "logging.screenshots_mb=0")
DRAWN = "performance.getEntriesByType('resource').filter((each) => each.name.endsWith('/data/0/now')).length"
RESAMPLES = 10_000
SMALL = ("experiment=quick", "threads=1", "eval.baseline=false", "eval.episodes=1", "logging.tensorboard=false")


@dataclass(frozen=True)
class Measured:
    """Of one run: wall seconds of each step but the first, and processor seconds of all that it did."""

    steps_s: tuple[float, ...]
    processor_s: float
    mib: float
    looks: int
    """How often the wall was drawn."""


def main() -> None:
    """Measure and print a line a pair, and the ratios' medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=8, help="training steps of each run")
    parser.add_argument("--watching", action="store_true", help="with the wall open in a browser")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    given = parser.parse_args()
    keys = [*SMALL, f"max_steps={given.steps}", *given.overrides]
    pairs: list[tuple[Measured, Measured]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(given.repeats):
            pairs.append(pair(Path(temporary) / str(repeat), keys, watching=given.watching, off_first=repeat % 2 == 0))
            told(*pairs[-1])
    steps = [both for off, on in pairs for both in zip(off.steps_s, on.steps_s, strict=True)]
    low, high = interval(steps)
    processor = statistics.median(off.processor_s / on.processor_s for off, on in pairs)
    print(f"steps per hour with recording: {100 * ratio(steps):.1f} % of without [{100 * low:.1f}, {100 * high:.1f}]")
    print(f"the same by processor seconds of the run: {100 * processor:.1f} % (median)")


def pair(folder: Path, keys: list[str], *, watching: bool, off_first: bool) -> tuple[Measured, Measured]:
    """A run without recording and one with it."""

    def without() -> Measured:
        return measured(folder / "off", [*keys, *OFF], watching=False)

    off = without() if off_first else None
    on = measured(folder / "on", keys, watching=watching)
    return off or without(), on


def told(off: Measured, on: Measured) -> None:
    """A line on a pair."""
    steps = list(zip(off.steps_s, on.steps_s, strict=True))
    print(
        f"without {sum(off.steps_s):6.1f} s, {off.processor_s:6.1f} processor s   "
        f"with {sum(on.steps_s):6.1f} s, {on.processor_s:6.1f} processor s, {on.mib:.1f} MiB on disk, "
        f"wall drawn {on.looks} times   {100 * ratio(steps):.1f} %",
        flush=True,
    )


def ratio(steps: Sequence[tuple[float, float]]) -> float:
    """Steps per hour with recording over those without, of pairs of seconds without and with."""
    return sum(off for off, _ in steps) / sum(on for _, on in steps)


def interval(steps: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of `ratio` over the pairs of steps."""
    draw = random.Random(0)
    ratios = sorted(ratio(draw.choices(steps, k=len(steps))) for _ in range(RESAMPLES))
    return ratios[round(0.025 * RESAMPLES)], ratios[round(0.975 * RESAMPLES) - 1]


def measured(run: Path, keys: list[str], *, watching: bool) -> Measured:
    """Train in a process of its own."""
    command = [sys.executable, "train.py", *keys, f"output_dir={run.parent}", f"run_name={run.name}"]
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    with training, watched(run, training) if watching else nullcontext(lambda: 0) as looks:
        _, status, usage = os.wait4(training.pid, 0)
        training.returncode = os.waitstatus_to_exitcode(status)
        drawn = looks()
    if training.returncode:
        raise SystemExit(training.returncode)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = sum(file.stat().st_size for file in (run / "episodes").rglob("*") if file.is_file())
    seconds = tuple(row["step_s"] for row in rows[1:])
    return Measured(seconds, usage.ru_utime + usage.ru_stime, recorded / 2**20, drawn)


@contextmanager
def watched(run: Path, training: subprocess.Popen[bytes]) -> Iterator[Callable[[], int]]:
    """A browser shows the wall of `run` inside; yields what tells how often it was drawn."""
    from playwright.sync_api import sync_playwright

    while not (run / "config.yaml").exists():
        if training.poll() is not None:
            raise SystemExit(training.returncode)
        time.sleep(0.2)
    command = [sys.executable, "-m", "trainers.watch", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        server.stdout.readline()
        browser = driver.chromium.launch(executable_path=DEFAULT_BROWSER, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.add_init_script("performance.setResourceTimingBufferSize(100000)")
            page.goto(server.stdout.readline().split()[0])
            yield lambda: int(page.evaluate(DRAWN))
        finally:
            browser.close()
            server.terminate()


if __name__ == "__main__":
    main()
