"""What an update on the same recorded batch costs on each backend, and in other libraries: processor seconds, seconds,
memory.

    python -m trainers.parity record --out outputs/batches rollout.groups_per_step=8 rollout.group_size=8
    python benchmarks/bench_update.py outputs/batches

    pip install --no-deps --target outputs/trl trl==1.16.0
    python benchmarks/bench_update.py outputs/batches loss.decoupled=false --trl outputs/trl \
        --sides legacy phase3 trl trl-checkpointed areal areal-rows

Every side has a process of its own and all of them take turns, one update each, so that a change in what else the
machine does falls on all of them. Each round trains on the next recorded batch. Ratios are medians over the rounds of
what a side took to what the first took in the same round. The last columns are of the first update, which all sides
make from the same weights: whether they compute the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch
import yaml
from other_updates import Meter, areal_updates, trl_updates
from rich.console import Console
from rich.table import Table

from cua_agent.models.loaders import load_policy
from trainers.components import build_components
from trainers.config import TrainConfig
from trainers.parity.cases import replayable, with_keys
from trainers.parity.recording import load_recording
from trainers.parity.replay import SIDES, Side, nowhere, on_side, opened
from trainers.protocol import Batch

OTHERS = {
    "areal": partial(areal_updates, packed=True),
    "areal-rows": partial(areal_updates, packed=False),
    "trl": partial(trl_updates, checkpointed=False),
    "trl-checkpointed": partial(trl_updates, checkpointed=True),
}


@dataclass(frozen=True)
class Cost:
    """Of one update: processor seconds of all threads, seconds by the clock, and the largest memory so far in MiB; the
    loss that was trained with, and the gradient's norm before clipping."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    loss: float
    grad_norm: float


class PipeMeter:
    """Implements `Meter` for a side in a process of its own: `parent` sends numbers of `batches`, and gets costs."""

    def __init__(self, batches: Sequence[Batch], parent: Connection) -> None:
        self._batches, self._parent = batches, parent
        self._cpu = self._wall = 0.0

    def next_batch(self) -> Batch | None:
        number = self._parent.recv()
        return None if number is None else self._batches[number % len(self._batches)]

    def start(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self._cpu, self._wall = time.process_time() - self._cpu, time.perf_counter() - self._wall

    def report(self, loss: float, grad_norm: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._parent.send(Cost(self._cpu, self._wall, peak, loss, grad_norm))


def serve(name: str, directory: Path, keys: Sequence[str], trl: Path | None, parent: Connection) -> None:
    """In a process of its own: update on the batch of each number that arrives and answer with the cost."""
    recording = load_recording(directory)
    overrides = {key: yaml.safe_load(value) for key, value in (key.split("=", 1) for key in keys)}
    config = with_keys(replayable(recording.config, "full"), overrides)
    meter = PipeMeter(recording.batches(), parent)
    torch.set_num_threads(config.threads)
    if name in OTHERS:
        policy = load_policy(config.model.path, freeze_vision=config.model.freeze_vision)
        with tempfile.TemporaryDirectory() as temporary:
            options = {"package": trl} if name.startswith("trl") else {}
            OTHERS[name](on_side(config, "phase3"), policy, Path(temporary), meter, **options)
        os._exit(0)  # what their engines leave running
    our_updates(on_side(config, cast(Side, name)), meter)


def our_updates(config: TrainConfig, meter: Meter) -> None:
    """One of our backends; the making of its tensors is part of the update."""
    with opened(config, replace(build_components(config), environments=nowhere)) as side:
        while (batch := meter.next_batch()) is not None:
            meter.start()
            record = side.trainer.update(batch)
            meter.stop()
            meter.report(record.metrics["loss"], record.metrics["grad_norm"])


def measure(
    directory: Path, sides: Sequence[str], rounds: int, keys: Sequence[str], trl: Path | None
) -> dict[str, list[Cost]]:
    """The costs of each round, the warm-up first."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for side in sides:
        ends[side], child = context.Pipe()
        context.Process(target=serve, args=(side, directory, keys, trl, child), daemon=True).start()
        child.close()  # a process that breaks off ends the wait for it
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    for number in range(1 + rounds):
        for side, end in ends.items():
            end.send(number)
            costs[side].append(end.recv())
    for end in ends.values():
        end.send(None)
    return costs


def report(costs: Mapping[str, list[Cost]]) -> None:
    """The table."""
    table = Table()
    for column in ("side", "processor s", "ratio", "s", "ratio", "peak MiB", "loss", "gradient"):
        table.add_column(column, justify="left" if column == "side" else "right")
    _, *first = next(iter(costs.values()))
    for side, (warm_up, *each) in costs.items():
        cpu_ratio = statistics.median(c.cpu_s / other.cpu_s for c, other in zip(each, first, strict=True))
        wall_ratio = statistics.median(c.wall_s / other.wall_s for c, other in zip(each, first, strict=True))
        cpu, wall = (statistics.median(getattr(c, name) for c in each) for name in ("cpu_s", "wall_s"))
        figures = (f"{cpu:.2f}", f"{cpu_ratio:.2f}", f"{wall:.2f}", f"{wall_ratio:.2f}")
        peak = max(c.peak_mib for c in each)
        table.add_row(side, *figures, f"{peak:.0f}", f"{warm_up.loss:+.6f}", f"{warm_up.grad_norm:.5f}")
    Console(width=100).print(table)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="what `python -m trainers.parity record` wrote, or a run")
    parser.add_argument("--rounds", type=int, default=5, help="updates of every side")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, *OTHERS], default=list(SIDES), help="see the ratios")
    parser.add_argument("--trl", type=Path, help="where TRL was installed; without it its sides are left out")
    parser.add_argument("overrides", nargs="*", help="further keys, key=value")
    options = parser.parse_intermixed_args()
    sides = [side for side in options.sides if options.trl is not None or not side.startswith("trl")]
    if sides != options.sides:
        print("without TRL: pip install --no-deps --target outputs/trl trl==1.16.0, and --trl outputs/trl")
    report(measure(options.recording, sides, options.rounds, options.overrides, options.trl))


if __name__ == "__main__":
    main()
