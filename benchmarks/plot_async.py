"""Draws what bench_async.py measured: steps per hour beside the synchronous backend, with delays and without.

    python benchmarks/bench_async.py --concurrency 64 --phases 3 --repeats 3 --out bound2.json
    python benchmarks/bench_async.py --concurrency 64 --phases 3:3 --repeats 3 --out bound3.json
    python benchmarks/bench_async.py --median 0 --phases 3 2 1 --repeats 3 --out undelayed.json
    python benchmarks/plot_async.py --delayed bound2.json bound3.json --undelayed undelayed.json --output backends.png

Bars are medians of the repeats' ratios, lines go from the lowest to the highest; 3:3 is phase 3 with a bound of 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench_async import Measured, Repeat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "legacy": "C7",
    "areal phase 1": "C2",
    "areal phase 2": "C1",
    "areal phase 3": "C0",
    "areal phase 3:3": "C0",
}


def main() -> None:
    """Read the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delayed", type=Path, nargs="+", required=True, help="what bench_async.py wrote, with delays")
    parser.add_argument("--undelayed", type=Path, nargs="+", required=True, help="the same without")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    draw(read(options.delayed), read(options.undelayed), options.output)
    print(options.output)


def read(paths: Sequence[Path]) -> list[Repeat]:
    """The repeats of files that bench_async.py wrote."""
    return [
        Repeat(
            tuple(Measured(**run) for run in repeat["runs"]),
            None if repeat["undelayed"] is None else Measured(**repeat["undelayed"]),
            repeat["concurrency"],
        )
        for path in paths
        for repeat in json.loads(path.read_text())
    ]


def draw(delayed: Sequence[Repeat], undelayed: Sequence[Repeat], output: Path) -> None:
    """Two panels on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    at_once = delayed[0].concurrency
    panel(left, delayed, f"Devices as they are: an action takes 1 s, one in a hundred 8 s\n{at_once} devices")
    panel(right, undelayed, "Devices that answer at once\ntwo processor cores are all there is to win")
    allowed = statistics.median(repeat.runs[0].step_s / repeat.bounds_s[0] for repeat in delayed)
    left.axvline(allowed, color="C3", linestyle="--", linewidth=1)
    left.text(allowed - 0.05, -0.55, "every device always busy", color="C3", fontsize="small", ha="right")
    figure.supxlabel("steps per hour beside the synchronous backend", fontsize="medium")
    figure.savefig(output, dpi=120)


def panel(axes: Axes, repeats: Sequence[Repeat], title: str) -> None:
    """A bar for each run that has a colour."""
    ratios: dict[str, list[float]] = {name: [] for name in COLOURS}
    for repeat in repeats:
        for run in repeat.runs:
            ratios.get(run.name, []).append(repeat.runs[0].step_s / run.step_s)
    measured = [(name, values) for name, values in ratios.items() if values]
    for place, (name, values) in enumerate(measured):
        middle, low, high = statistics.median(values), min(values), max(values)
        axes.barh(place, middle, color=COLOURS[name], xerr=[[middle - low], [high - middle]], capsize=3)
        axes.text(0.08, place, f"{middle:.2f}", va="center", color="white")
    axes.set_yticks(range(len(measured)), [name.replace(":", ", bound ") for name, _ in measured])
    axes.set_ylim(len(measured) - 0.4, -0.9)
    axes.set_title(title, fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
