"""The tables of a comparison: text for the page and `compare.md`, numbers for `compare.csv` and `curves.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.compare import words
from trainers.compare.bootstrap import Estimate
from trainers.compare.comparison import Comparison
from trainers.compare.escaping import csv_cell
from trainers.compare.runs import Run, number


@dataclass(frozen=True)
class Table:
    """Texts in rows under a heading."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def figure_table(comparison: Comparison) -> Table:
    """Final figures: a column an arm, and one for each candidate against the reference."""
    reference = comparison.reference.label
    against = [f"{arm.label} against {reference}" for arm in comparison.candidates]
    rows = []
    for row in comparison.rows:
        cells = [words.cell(row.figure, cell) for cell in row.cells]
        contrasts = [words.contrast(row.figure, estimate) for estimate in row.contrasts[1:]]
        rows.append((row.figure.title, *cells, *contrasts))
    return Table(("", *(arm.label for arm in comparison.arms), *against), tuple(rows))


def run_table(comparison: Comparison) -> Table:
    """Every run: what it is, how it ended."""
    rows = []
    for arm in comparison.arms:
        for run in arm.runs:
            state = "finished" if run.finished else "failed" if run.error else "unfinished"
            last = run.evaluated("seeds")[-1:]
            success = words.value(last[0].success, "%") if last else "–"
            minutes = [*run.axis("minutes").values()][-1]
            rows.append(
                (
                    run.name,
                    arm.label,
                    str(run.seed),
                    state,
                    str(run.steps[-1] if run.rows else 0),
                    success,
                    words.value(minutes, "min") if minutes == minutes else "–",
                    (run.commit or "–")[:7],
                    run.machine or "–",
                )
            )
    return Table(
        ("run", "configuration", "seed", "state", "steps", "last success", "training", "commit", "machine"), tuple(rows)
    )


def write_figures(comparison: Comparison, output: Path) -> Path:
    """`compare.csv`: a line for each figure and arm. Shares are 0 to 1; empty is not known, or no interval."""
    heading = ("figure", "meaning", "unit", "arm", "runs", "mean", "low", "high")
    against = ("against", "contrast", "contrast_value", "contrast_low", "contrast_high")
    return _write(output, (*heading, *against), _figure_lines(comparison))


def write_curves(comparison: Comparison, output: Path) -> Path:
    """`curves.csv`: a line for each step of each run, with its metrics, what had been spent, and evaluations."""
    metrics = dict.fromkeys(key for arm in comparison.arms for run in arm.runs for row in run.rows for key in row)
    metrics.pop("step", None)
    heading = (
        "arm",
        "run",
        "seed",
        "step",
        "minutes_spent",
        "episodes_spent",
        "eval_seeds",
        "eval_templates",
        *metrics,
    )
    lines = (
        (arm.label, *line) for arm in comparison.arms for run in arm.runs for line in _curve_lines(run, list(metrics))
    )
    return _write(output, heading, lines)


def _figure_lines(comparison: Comparison) -> Iterator[Sequence[Any]]:
    for row in comparison.rows:
        figure = row.figure
        unit = {"%": "share", "gap": "", "count": ""}.get(figure.unit, figure.unit)
        for arm, cell, contrast in zip(comparison.arms, row.cells, row.contrasts, strict=True):
            against = (comparison.reference.label, figure.contrast) if contrast else ("", "")
            mean, difference = _bounds(cell.estimate), _bounds(contrast)
            yield (figure.key, figure.title, unit, arm.label, cell.known, *mean, *against, *difference)


def _bounds(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)


def _curve_lines(run: Run, metrics: Sequence[str]) -> Iterator[Sequence[Any]]:
    minutes, episodes = run.axis("minutes"), run.axis("episodes")
    rows = {row["step"]: row for row in run.rows}
    successes = {
        split: {evaluation.step: evaluation.success for evaluation in run.evaluated(split)}
        for split in ("seeds", "templates")
    }
    for step in sorted({*rows, *successes["seeds"], *successes["templates"]}):
        spent = (_known(minutes.get(step)), _known(episodes.get(step)))
        evaluated = (successes["seeds"].get(step), successes["templates"].get(step))
        yield (
            run.name,
            run.seed,
            step,
            *spent,
            *evaluated,
            *(_known(number(rows.get(step, {}), key)) for key in metrics),
        )


def _known(value: float | None) -> float | None:
    return value if value is not None and value == value else None


def _write(output: Path, heading: Sequence[str], lines: Iterable[Sequence[Any]]) -> Path:
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(map(csv_cell, line) for line in (heading, *lines))
    return output
