"""Draws what bench_async.py measured: steps per hour beside the synchronous backend, with delays and without.

    python benchmarks/bench_async.py --concurrency 64 --repeats 3 --out delayed.json
    python benchmarks/bench_async.py --median 0 --phases 1 2 3 --repeats 3 --out undelayed.json
    python benchmarks/plot_async.py delayed.json undelayed.json --output docs/images/backends.png

Bars are medians of the repeats' ratios, lines go from the lowest to the highest.
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

COLOURS = {"legacy": "C7", "areal phase 1": "C2", "areal phase 2": "C1", "areal phase 3": "C0"}


def main() -> None:
    """Read the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("delayed", type=Path, help="what bench_async.py wrote, with delays")
    parser.add_argument("undelayed", type=Path, help="the same without")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    draw(read(options.delayed), read(options.undelayed), options.output)
    print(options.output)


def read(path: Path) -> list[Repeat]:
    """The repeats of a file that bench_async.py wrote."""
    return [
        Repeat(
            tuple(Measured(**run) for run in repeat["runs"]),
            None if repeat["undelayed"] is None else Measured(**repeat["undelayed"]),
            repeat["concurrency"],
        )
        for repeat in json.loads(path.read_text())
    ]


def draw(delayed: Sequence[Repeat], undelayed: Sequence[Repeat], output: Path) -> None:
    """Two panels on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    panel(
        left, delayed, f"Devices as they are: 1 s an action, 8 s for one in a hundred\n{delayed[0].concurrency} at once"
    )
    panel(right, undelayed, "Devices that answer at once\ntwo cores are all there is to win")
    allowed = statistics.median(repeat.runs[0].step_s / repeat.bounds_s[0] for repeat in delayed)
    left.axvline(allowed, color="C3", linestyle="--", linewidth=1)
    left.text(allowed, -0.62, "environments always busy", color="C3", fontsize="small", ha="right")
    figure.supxlabel("steps per hour, synchronous backend = 1", fontsize="medium")
    figure.savefig(output, dpi=120)


def panel(axes: Axes, repeats: Sequence[Repeat], title: str) -> None:
    """A bar for each run but those with a bound of their own."""
    runs = [name for name in COLOURS if name in {run.name for run in repeats[0].runs}]
    for place, name in enumerate(runs):
        ratios = [repeat.runs[0].step_s / run.step_s for repeat in repeats for run in repeat.runs if run.name == name]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        axes.barh(place, middle, color=COLOURS[name], xerr=[[middle - low], [high - middle]], capsize=3)
        axes.text(high + 0.06, place, f"{middle:.2f}", va="center", fontsize="small")
    axes.set_yticks(range(len(runs)), runs)
    axes.set_ylim(len(runs) - 0.4, -0.9)
    axes.set_title(title, fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
