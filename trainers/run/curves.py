"""Learning curves of runs, read from their `metrics.jsonl` and `eval.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.run.files import spent_minutes
from trainers.run.lineage import Lineage, evaluation_rows, lineage_of, training_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = "learning_curve.png"


@dataclass(frozen=True)
class Curve:
    """One run: success of training rollouts by step, and of evaluations by split; `minutes[i]` is the time spent on
    training up to step i (evaluations not counted)."""

    name: str
    minutes: dict[int, float]
    training: list[tuple[int, float]]
    evaluations: dict[str, list[tuple[int, float]]]


def read_curve(directory: Path, lineage: Lineage | None = None) -> Curve:
    """The curve of a run with all that it was resumed from (its `lineage`); empty where there are no rows yet."""
    lineage = lineage or lineage_of(directory)
    rows = training_rows(lineage)
    before = rows[0]["step"] - 1 if rows else 0
    minutes = {before: 0.0} | {row["step"]: spent for row, spent in zip(rows, spent_minutes(rows), strict=True)}
    evaluations: dict[str, list[tuple[int, float]]] = {}
    for row in evaluation_rows(lineage):
        if row.get("success_rate") is not None:
            evaluations.setdefault(str(row.get("split")), []).append((row["step"], row["success_rate"]))
    training = [(row["step"], row["success_rate"]) for row in rows if row.get("success_rate") is not None]
    return Curve(directory.name, minutes, training, evaluations)


def draw(curves: Sequence[Curve], output: Path) -> Path:
    """Success over steps (training rollouts thin, held-out evaluations thick) and over minutes of training."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"text.parse_math": False}):  # a name with two dollar signs is no formula
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        _draw(figure, curves)
        figure.savefig(output, dpi=120)
    return output


def _draw(figure: Figure, curves: Sequence[Curve]) -> None:
    by_step, by_minute = figure.subplots(1, 2, sharey=True)
    for index, curve in enumerate(curves):
        colour = f"C{index}"
        steps, successes = _columns(curve.training)
        by_step.plot(steps, successes, color=colour, alpha=0.35, linewidth=1)
        for split, style in (("seeds", "o-"), ("templates", "s--")):
            points = curve.evaluations.get(split, [])
            if not points:
                continue
            steps, successes = _columns(points)
            by_step.plot(steps, successes, style, color=colour, label=f"{curve.name}: unseen {split}")
            timed = [(curve.minutes[step], success) for step, success in points if step in curve.minutes]
            by_minute.plot(*_columns(timed), style, color=colour)
    by_step.set(xlabel="training step", ylabel="success rate", ylim=(0, 1.02))
    by_minute.set(xlabel="minutes of training (evaluations not counted)")
    for axes in (by_step, by_minute):
        axes.grid(alpha=0.3)
    if by_step.get_legend_handles_labels()[0]:
        by_step.legend(fontsize="small", loc="lower right")
    figure.suptitle("Success on held-out tasks (thin lines: training rollouts)", fontsize="medium")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
