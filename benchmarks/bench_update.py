"""What an update on the same recorded batch costs on each backend: processor seconds and seconds.

    python -m trainers.parity record --out outputs/batches rollout.groups_per_step=8 rollout.group_size=8
    python benchmarks/bench_update.py outputs/batches

Every side has a process of its own and all of them take turns, one update each, so that a change in what else the
machine does falls on all of them. Each round trains on the next recorded batch. Ratios are medians over the rounds of
what a side took to what legacy took in the same round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from trainers.parity.replay import SIDES, Side

WARM_UP = 1


@dataclass(frozen=True)
class Cost:
    """Of one update: processor seconds of all threads, seconds by the clock, and the largest memory so far in MiB."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def serve(side: Side, directory: Path, keys: Sequence[str], parent: Connection) -> None:
    """In a process of its own: update on the batch of each number that arrives and answer with the cost."""
    from trainers.components import build_components
    from trainers.parity.cases import replayable, with_keys
    from trainers.parity.recording import load_recording
    from trainers.parity.replay import nowhere, on_side, opened

    recording = load_recording(directory)
    overrides = {name: yaml.safe_load(value) for name, value in (key.split("=", 1) for key in keys)}
    config = on_side(with_keys(replayable(recording.config, "full"), overrides), side)
    batches = recording.batches()
    with opened(config, replace(build_components(config), environments=nowhere)) as opened_side:
        parent.send(sum(len(row) for row in batches[0].trajectories))
        while (number := parent.recv()) is not None:
            cpu, wall = time.process_time(), time.perf_counter()
            opened_side.trainer.update(batches[number % len(batches)])
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            parent.send(Cost(cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure(directory: Path, sides: Sequence[Side], rounds: int, keys: Sequence[str]) -> dict[Side, list[Cost]]:
    """The costs of each round after the warm-up."""
    context = multiprocessing.get_context("spawn")
    ends: dict[Side, Connection] = {}
    for side in sides:
        ends[side], child = context.Pipe()
        context.Process(target=serve, args=(side, directory, keys, child), daemon=True).start()
        child.close()  # a process that breaks off ends the wait for it
        ends[side].recv()
    costs: dict[Side, list[Cost]] = {side: [] for side in sides}
    for number in range(WARM_UP + rounds):
        for side, end in ends.items():
            end.send(number)
            costs[side].append(end.recv())
    for end in ends.values():
        end.send(None)
    return {side: each[WARM_UP:] for side, each in costs.items()}


def report(costs: dict[Side, list[Cost]]) -> None:
    """The table."""
    table = Table()
    for column in ("side", "processor s", "ratio", "s", "ratio", "peak MiB"):
        table.add_column(column, justify="left" if column == "side" else "right")
    legacy = next(iter(costs.values()))
    for side, each in costs.items():
        cpu_ratio = statistics.median(c.cpu_s / other.cpu_s for c, other in zip(each, legacy, strict=True))
        wall_ratio = statistics.median(c.wall_s / other.wall_s for c, other in zip(each, legacy, strict=True))
        cpu, wall = (statistics.median(getattr(c, name) for c in each) for name in ("cpu_s", "wall_s"))
        peak = max(c.peak_mib for c in each)
        table.add_row(side, f"{cpu:.2f}", f"{cpu_ratio:.2f}", f"{wall:.2f}", f"{wall_ratio:.2f}", f"{peak:.0f}")
    Console(width=100).print(table)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="what `python -m trainers.parity record` wrote, or a run")
    parser.add_argument("--rounds", type=int, default=5, help="updates of every side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the first is the measure")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_intermixed_args()
    report(measure(options.recording, options.sides, options.rounds, options.overrides))


if __name__ == "__main__":
    main()
