"""What recording costs a run: steps per hour and processor seconds with and without it, in turns.

    python benchmarks/bench_recording.py --repeats 3 --steps 8 backend=legacy

Without means no episodes, no screens and no wall. `--watching` has the wall open in a headless browser meanwhile, whose
processor time is not counted: it belongs to another machine, or core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cua_agent.envs.web.browser import DEFAULT_BROWSER

ROOT = Path(__file__).resolve().parents[1]
OFF = ("logging.record_groups=0", "logging.record_evaluations=false", "logging.screenshots_mb=0")
SMALL = ("experiment=quick", "threads=1", "eval.baseline=false", "eval.episodes=1", "logging.tensorboard=false")


@dataclass(frozen=True)
class Measured:
    """Of one run: wall seconds of its steps but the first, and processor seconds of all that it did."""

    steps_s: float
    processor_s: float
    mib: float


def main() -> None:
    """Measure and print a line a pair, and the ratios' medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=8, help="training steps of each run")
    parser.add_argument("--watching", action="store_true", help="with the wall open in a browser")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    given = parser.parse_args()
    keys = [*SMALL, f"max_steps={given.steps}", *given.overrides]
    wall, processor = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(given.repeats):
            off = measured(Path(temporary) / f"off{repeat}", [*keys, *OFF], watching=False)
            on = measured(Path(temporary) / f"on{repeat}", keys, watching=given.watching)
            wall.append(off.steps_s / on.steps_s)
            processor.append(off.processor_s / on.processor_s)
            print(
                f"without {off.steps_s:6.1f} s, {off.processor_s:6.1f} processor s   "
                f"with {on.steps_s:6.1f} s, {on.processor_s:6.1f} processor s, {on.mib:.1f} MiB on disk",
                flush=True,
            )
    print(f"steps per hour with recording: {100 * statistics.median(wall):.1f} % of without (median)")
    print(f"the same by processor seconds: {100 * statistics.median(processor):.1f} %")


def measured(run: Path, keys: list[str], *, watching: bool) -> Measured:
    """Train in a process of its own."""
    command = [sys.executable, "train.py", *keys, f"output_dir={run.parent}", f"run_name={run.name}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        with watched(run) if watching else nullcontext():
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = sum(file.stat().st_size for file in (run / "episodes").rglob("*") if file.is_file())
    return Measured(sum(row["step_s"] for row in rows[1:]), usage.ru_utime + usage.ru_stime, recorded / 2**20)


@contextmanager
def watched(run: Path) -> Iterator[None]:
    """A browser shows the wall of `run` inside."""
    from playwright.sync_api import sync_playwright

    while not (run / "config.yaml").exists():
        time.sleep(0.2)
    command = [sys.executable, "-m", "trainers.watch", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        server.stdout.readline()
        browser = driver.chromium.launch(executable_path=DEFAULT_BROWSER, args=["--no-sandbox"])
        try:
            browser.new_page().goto(server.stdout.readline().split()[0])
            yield
        finally:
            browser.close()
            server.terminate()


if __name__ == "__main__":
    main()
