"""The panels of a comparison, each drawn on matplotlib axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trainers.compare import words
from trainers.compare.arms import Arm
from trainers.compare.comparison import Comparison
from trainers.compare.runs import SYNCHRONOUS, Axis, Run
from trainers.compare.series import Lines, Points, lines
from trainers.compare.style import SOFT, Look, lighter, looks, spread
from trainers.compare.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXIS_TITLES: dict[Axis, str] = {
    "minutes": "minutes of training",
    "steps": "training steps",
    "episodes": "episodes played for training",
}
_LABEL_HEIGHT = 0.075  # of the axes' height
_NAME_LENGTH = 34  # characters in a corner
_ROW_NAME_LENGTH = 22  # characters in a line beside a bar
_BAR = 0.36
_GATE_LENGTH = 50  # characters beside a mark; a longer reason is left to the sentences


def curves(axes: Axes, arms: Sequence[Arm], of: Callable[[Run], Points], axis: Axis, *, markers: bool = False) -> bool:
    """A metric of every arm: runs thin, their mean thick, the range of the runs shaded. False with nothing to draw."""
    from matplotlib.ticker import MaxNLocator

    drawn = False
    for arm, look in zip(arms, looks(arms), strict=True):
        of_arm = lines(arm, of, axis)
        if of_arm.runs:
            _draw_lines(axes, of_arm, look, markers)
            drawn = True
    axes.set_xlabel(AXIS_TITLES[axis])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 5, 10), integer=axis != "minutes"))
    return drawn


def _draw_lines(axes: Axes, of_arm: Lines, look: Look, markers: bool) -> None:
    mean = of_arm.mean
    for line in of_arm.runs if len(of_arm.runs) > 1 or mean is None else ():
        axes.plot(line.x, line.y, color=look.colour, alpha=0.35, linewidth=0.8)
    if mean is not None:
        axes.fill_between(mean.x, mean.low, mean.high, color=look.colour, alpha=0.15, linewidth=0)
        marker = look.marker if markers else ("" if len(mean.x) > 1 else look.marker)
        axes.plot(
            mean.x, mean.y, color=look.colour, linewidth=2, marker=marker, markersize=5.5, markeredgecolor="white"
        )


def name_line_ends(axes: Axes, arms: Sequence[Arm], of: Callable[[Run], Points], axis: Axis) -> None:
    """Each arm's name beside the right end of its line, outside the axes, moved apart where ends are close."""
    named = [(arm, look, lines(arm, of, axis)) for arm, look in zip(arms, looks(arms), strict=True)]
    named = [entry for entry in named if entry[2].runs]
    low, high = axes.get_ylim()
    ends = [((of_arm.mean or of_arm.runs[-1]).y[-1] - low) / (high - low) for _, _, of_arm in named]
    for (arm, look, _), place in zip(named, spread(ends, _LABEL_HEIGHT), strict=True):
        axes.annotate(
            arm.label, (1.02, place), xycoords="axes fraction", color=look.colour, va="center", fontweight="bold"
        )


def name_in_corner(axes: Axes, arms: Sequence[Arm]) -> None:
    """The arms' names with their markers in the lower right, which a rising curve leaves free."""
    for index, (arm, look) in enumerate(zip(reversed(arms), reversed(looks(arms)), strict=True)):
        height = 0.06 + (0.085 if len(arms) < 5 else 0.065) * index
        axes.text(
            0.9, height, textwrap.shorten(arm.label, _NAME_LENGTH, placeholder=" …"), color=look.colour,
            fontweight="bold", fontsize=_name_size(arms), ha="right", va="center", transform=axes.transAxes,
        ).set_in_layout(False)  # fmt: skip
        axes.plot(0.945, height, look.marker, color=look.colour, markersize=6, transform=axes.transAxes)


def percent_axis(axes: Axes, top: float = 1.02) -> None:
    """Shares on the vertical axis, from nothing to everything."""
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def target_line(axes: Axes, target: float) -> None:
    """A dashed line at a success rate."""
    limit_line(axes, target, f"{100 * target:g} %")


def limit_line(axes: Axes, height: float, text: str) -> None:
    """A dashed line at `height` with what it means above its left end."""
    axes.axhline(height, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    axes.annotate(
        text, (0.01, height), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=8, color=SOFT,
        xytext=(0, 1), textcoords="offset points",
    )  # fmt: skip


def step_anatomy(axes: Axes, comparison: Comparison) -> None:
    """Where the seconds of a mean step go: waiting for rollouts, training, handing the weights over. An asynchronous
    arm has a second lane above, for the rollouts that go on all the time."""
    for place, (arm, look) in enumerate(zip(comparison.arms, looks(comparison.arms), strict=True)):
        parts = [comparison.mean(key, arm) for key in ("rollout_s", "train_s", "sync_s", "step_s")]
        if any(part is None for part in parts):
            axes.text(0, place, " not known", va="center", color=SOFT)
            continue
        rollout, train, sync, step = (part or 0.0 for part in parts)
        turns = arm.backend == SYNCHRONOUS
        lane, y = (2 * _BAR, place) if turns else (_BAR, place + _BAR / 2)
        if not turns:
            _bar_part(axes, place - _BAR / 2, 0, step, lane, look.colour, 0.0, "rollouts go on")
        _bar_part(axes, y, 0, rollout, lane, look.colour, 0.0 if turns else 0.75, "rollouts" if turns else "waiting")
        _bar_part(axes, y, rollout, train, lane, look.colour, 0.45, "training")
        _bar_part(axes, y, rollout + train, sync, lane, look.colour, 0.7, "hand-over")
        axes.plot([step, step], [place - _BAR, place + _BAR], color="black", linewidth=1.5)
        axes.annotate(
            f"{step:.1f} s", (step, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    _name_rows(axes, comparison)
    axes.set_xlabel("seconds")
    axes.margins(x=0.14)
    axes.set_xlim(left=0)


def _bar_part(
    axes: Axes, y: float, start: float, width: float, height: float, colour: str, light: float, name: str
) -> None:
    axes.barh(y, width, height, left=start, color=lighter(colour, light), edgecolor="white", linewidth=0.8)
    axes.annotate(
        name,
        (start + width / 2, y),
        ha="center",
        va="center",
        fontsize=8,
        color="white" if light < 0.3 else "black",
    ).set_visible(width > 0.18 * axes.dataLim.x1)


def quantities(axes: Axes, comparison: Comparison, keys: Sequence[tuple[str, str]]) -> None:
    """Figures side by side: for each (key, title) a bar an arm, as long as its share of the largest, with its value and
    interval."""
    marks = looks(comparison.arms)
    height = 0.8 / max(len(comparison.arms), 1)
    titles = []
    for group, (key, title) in enumerate(keys):
        row = comparison.row(key)
        titles.append(title)
        if row is None:
            continue
        means = [cell.estimate.mean if cell.estimate else math.nan for cell in row.cells]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0) or 1
        for place, (cell, look) in enumerate(zip(row.cells, marks, strict=True)):
            if cell.estimate is None:
                continue
            y, estimate = group + (place + 0.5) * height - 0.4, cell.estimate
            axes.barh(y, estimate.mean / largest, 0.86 * height, color=look.colour)
            reach = estimate.mean
            if estimate.low is not None and estimate.high is not None:
                reach = max(estimate.high, reach)
                axes.plot([estimate.low / largest, estimate.high / largest], [y, y], color="black", linewidth=1)
            text = words.value(estimate.mean, row.figure.unit)
            if row.figure.contrast == "ratio" and (ratio := row.contrasts[place]) is not None:
                text += f"  ({words.times(ratio.mean)})"
            axes.annotate(
                text, (reach / largest, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9,
                color=look.colour, fontweight="bold",
            )  # fmt: skip
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlim(0, 1.75)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def success_difference(axes: Axes, comparison: Comparison) -> None:
    """The difference of final success from the reference, with its interval, against the margin."""
    margin = 100 * comparison.margin
    marks = dict(zip([arm.label for arm in comparison.arms], looks(comparison.arms), strict=True))
    reach = [1.4 * margin, 2.0]
    for place, arm in enumerate(comparison.candidates):
        estimate, look = comparison.contrast("success_end", arm), marks[arm.label]
        if estimate is None:
            axes.text(0, place, "not known", ha="center", va="center", color=SOFT)
            continue
        mean = 100 * estimate.mean
        reach.append(abs(mean) * 1.1)
        text = f"{words.points(estimate.mean)} points (one seed)"
        if estimate.low is not None and estimate.high is not None:
            low, high = 100 * estimate.low, 100 * estimate.high
            reach += [1.1 * abs(low), 1.1 * abs(high)]
            axes.plot([low, high], [place, place], color=look.colour, linewidth=3, solid_capstyle="butt")
            text = f"{words.points(estimate.mean)} points [{words.points(estimate.low)}, {words.points(estimate.high)}]"
        axes.plot(mean, place, look.marker, color=look.colour, markersize=9, markeredgecolor="white")
        axes.annotate(
            text, (0, place), xytext=(0, 10), textcoords="offset points", ha="center", fontsize=9, color=look.colour,
            fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    limit = max(reach)
    axes.axvspan(-limit, -margin, color="#eeeeee", zorder=0)
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.axvline(-margin, color="black", linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(-limit, limit)
    axes.set_ylim(len(comparison.candidates) - 0.4, -0.9)
    axes.annotate(
        f"margin −{margin:g}", (-margin, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
        textcoords="offset points", fontsize=8, ha="center", va="bottom", color=SOFT,
    )  # fmt: skip
    axes.set_yticks([])
    axes.grid(False, axis="y")
    against = textwrap.shorten(comparison.reference.label, 20, placeholder=" …")
    axes.set_xlabel(f"points of success, against {against}", fontsize=None if len(against) < 12 else 8)


_GATE_MARKS = {
    "pass": ("✓", "#00695C", "normal"), "undecided": ("?", "#8A6100", "bold"), "FAIL": ("✗", "#8E1B1B", "bold"),
}  # fmt: skip


def gates(axes: Axes, verdict: Verdict) -> None:
    """The gates as a list, each with its mark."""
    axes.set_axis_off()
    for index, check in enumerate(verdict.checks):
        place = (0.0, 0.94 - 0.155 * index)  # of the axes
        mark, colour, weight = _GATE_MARKS[check.word]
        text = f"{check.name}: {check.reason}"
        axes.text(*place, mark, color=colour, fontweight="bold", va="center", transform=axes.transAxes)
        axes.text(
            place[0] + 0.06, place[1], text if len(text) <= _GATE_LENGTH else check.name, fontsize=8.5, va="center",
            color="black" if check.passed else colour, fontweight=weight, transform=axes.transAxes,
        ).set_in_layout(False)  # fmt: skip


def _name_size(arms: Sequence[Arm]) -> float:
    """Points; long or many names are set smaller."""
    longest = max(len(arm.label) for arm in arms)
    return 9.5 if longest <= 16 and len(arms) < 5 else 8 if longest <= 24 else 7


def _name_rows(axes: Axes, comparison: Comparison) -> None:
    names = ["\n".join(textwrap.wrap(arm.label, _ROW_NAME_LENGTH)) for arm in comparison.arms]
    axes.set_yticks(range(len(comparison.arms)), names, fontsize=_name_size(comparison.arms))
    for text, look in zip(axes.get_yticklabels(), looks(comparison.arms), strict=True):
        text.set_color(look.colour)
        text.set_fontweight("bold")
    axes.set_ylim(len(comparison.arms) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
