"""`compare.png`: the comparison on one sheet, readable at the width of a README."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.compare import panels, words
from trainers.compare.comparison import Comparison, judgement, progress_in_words, speed_in_words, success_in_words
from trainers.compare.runs import Axis
from trainers.compare.series import held_out, metric
from trainers.compare.style import RC, SOFT
from trainers.compare.verdict import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 10.2, 7.3, 165  # inches, dots per inch
_LINE_LENGTH = 138  # characters of a sentence
_TITLE_LENGTH = 82  # characters at full size
_MOST_LINES = 4
_BADGE: dict[Decision, tuple[str, str]] = {
    "go": ("GO", "#00695C"), "undecided": ("UNDECIDED", "#8A6100"), "no-go": ("NO-GO", "#8E1B1B"),
}  # fmt: skip
_TOP: tuple[tuple[Axis, str, str], ...] = (
    ("minutes", "Faster by the clock?", "By the clock"),
    ("steps", "As good by steps?", "By steps"),
    ("episodes", "As good by episodes?", "By episodes"),
)
_DONE = (
    ("steps_per_hour", "steps\nper hour"),
    ("episodes_per_hour", "episodes\nper hour"),
    ("environments", "environ-\nments\nin use"),
)


def draw_picture(comparison: Comparison, output: Path) -> Path:
    """Write the picture as a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(dict(RC)):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        below, above = _write_words(figure, comparison)
        figure.get_layout_engine().set(rect=(0.005, below, 0.99, above - below), h_pad=0.1, w_pad=0.06)  # type: ignore
        _draw_panels(figure, comparison)
        figure.savefig(output, dpi=_DPI)
    return output


def _write_words(figure: Figure, comparison: Comparison) -> tuple[float, float]:
    """Heading, sentences and footnote; returns what is left between them, as shares of the height."""
    name = title(comparison)
    size = 13.5 if len(name) <= _TITLE_LENGTH else 13.5 * _TITLE_LENGTH / len(name)
    figure.text(0.012, 0.985, name, fontsize=size, fontweight="bold", va="top")
    if len(comparison.verdicts) == 1:
        word, colour = _BADGE[comparison.verdicts[0].decision]
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.35"}
        figure.text(0.985, 0.98, word, fontsize=12, fontweight="bold", color="white", ha="right", va="top", bbox=box)
    lines = [line for text in sentences(comparison) for line in textwrap.wrap(text, _LINE_LENGTH)][:_MOST_LINES]
    figure.text(0.012, 0.938, "\n".join(lines), fontsize=9.5, va="top", linespacing=1.45)
    figure.text(0.012, 0.012, footnote(comparison), fontsize=8.5, color=SOFT, va="bottom")
    return 0.04, 0.925 - 0.028 * len(lines)


def _draw_panels(figure: Figure, comparison: Comparison) -> None:
    upper, lower = figure.subplots(2, 3)
    for axes, (axis, question, alone) in zip(upper, _TOP, strict=True):
        panels.curves(axes, comparison.arms, held_out("seeds"), axis, markers=True)
        panels.percent_axis(axes)
        panels.target_line(axes, comparison.target)
        panels.name_in_corner(axes, comparison.arms)
        axes.set_title(question if comparison.candidates else alone)
    upper[0].set_ylabel("success on unseen seeds")
    panels.step_anatomy(lower[0], comparison)
    lower[0].set_title("Where does a step's time go?")
    panels.quantities(lower[1], comparison, _DONE)
    lower[1].set_title("How much gets done?")
    _draw_verdicts(figure, lower[2], comparison)


def _draw_verdicts(figure: Figure, place: Axes, comparison: Comparison) -> None:
    """The difference of final success where `place` is, and below it, for a single candidate, the gates; without a
    candidate the reward in training."""
    if not comparison.candidates:
        panels.curves(place, comparison.arms, metric("reward_mean"), "steps")
        place.set_title("Reward in training")
        return
    difference = place
    if len(comparison.verdicts) == 1:
        halves = place.get_subplotspec().subgridspec(2, 1, height_ratios=[1, 1.1])  # type: ignore[union-attr]
        place.remove()
        difference = figure.add_subplot(halves[0])
        panels.gates(figure.add_subplot(halves[1]), comparison.verdicts[0])
    panels.success_difference(difference, comparison)
    difference.set_title("As good in the end?", pad=16)


def title(comparison: Comparison) -> str:
    """The result in a line for two arms, their names for other numbers."""
    reference, candidates = comparison.reference.label, comparison.candidates
    if not candidates:
        return reference
    if len(candidates) > 1:
        names = " and ".join(arm.label for arm in candidates)
        return f"{names if len(names) < 50 else f'{len(candidates)} configurations'} against {reference}"
    (arm,) = candidates
    speed, success = comparison.contrast("steps_per_hour", arm), comparison.contrast("success_end", arm)
    parts = []
    if speed is not None:
        parts.append(f"{words.times(speed.mean)} the steps per hour of {reference}")
    if success is not None and success.low is None:
        parts.append(f"success {words.points(success.mean)} points (one seed)")
    elif success is not None:
        parts.append(f"success {judgement(success, comparison.margin).lower()}")
    return f"{arm.label}: {', '.join(parts)}" if parts else f"{arm.label} against {reference}"


def sentences(comparison: Comparison) -> list[str]:
    """What was found about each candidate, and what it fails; about the only arm when there is one."""
    found = []
    if not comparison.candidates:
        alone = progress_in_words(comparison, comparison.reference)
        return [alone] if alone else []
    for arm, verdict in zip(comparison.candidates, comparison.verdicts, strict=True):
        speed = speed_in_words(comparison, arm)
        found += [success_in_words(comparison, arm), *([speed] if speed else [])]
        if not verdict.go:
            open_or_failed = [
                c for c in verdict.checks if not c.passed and c.undecided == (verdict.decision != "no-go")
            ]
            why = "; ".join(f"{check.name} ({check.reason})" for check in open_or_failed)
            found.append(f"{verdict.decision.capitalize()} for {arm.label}: {why}.")
            found += [f"Different: {', '.join(key for key, _ in comparison.settings)}."] if comparison.settings else []
    return found


def footnote(comparison: Comparison) -> str:
    """What lines and bands are, and over how many runs."""
    runs = ", ".join(f"{len(arm.finished)} {arm.label}" for arm in comparison.arms)
    runs = runs if len(comparison.arms) < 4 else str(sum(len(arm.finished) for arm in comparison.arms))
    key = "Lines: means over seeds; bands: from worst to best seed; [ ] and whiskers: 95 % bootstrap."
    return f"Finished runs: {runs}. {key}"
