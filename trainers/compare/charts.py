"""The charts of `compare.html`: one panel each, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainers.compare import panels
from trainers.compare.comparison import Comparison
from trainers.compare.panels import AXIS_TITLES
from trainers.compare.runs import SYNCHRONOUS, Axis, Run
from trainers.compare.series import Points, environments_in_use, held_out, metric
from trainers.compare.style import RC
from trainers.compare.verdict import Gates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (5.2, 3.1)  # inches
_QUANTITIES = (
    ("steps_per_hour", "steps per hour"),
    ("episodes_per_hour", "episodes per hour"),
    ("tokens_per_s", "tokens per second"),
    ("environments", "environments in use"),
)

Finish = Callable[["Axes", Comparison], None]


@dataclass(frozen=True)
class Chart:
    """A picture with its title; `svg` is empty where no run has the numbers, and `missing` then says why."""

    title: str
    svg: bytes = b""
    missing: str = ""


@dataclass(frozen=True)
class Section:
    """Charts that answer one question."""

    title: str
    help: str
    charts: tuple[Chart, ...]


def draw_sections(comparison: Comparison) -> Iterator[Section]:
    """All charts, in the order of the page."""
    yield Section(
        "Success on unseen seeds",
        "Sampled episodes on start states that training never shows, after every few steps.",
        tuple(
            _curve(comparison, f"Success by {AXIS_TITLES[axis]}", held_out("seeds"), axis, _success)
            for axis in AXIS_TITLES
        ),
    )
    yield Section(
        "Reward in training",
        "Mean reward of all scored episodes of a step, those of filtered groups included.",
        tuple(
            _curve(comparison, f"Reward by {AXIS_TITLES[axis]}", metric("reward_mean"), axis) for axis in AXIS_TITLES
        ),
    )
    yield Section(
        "Time",
        "A mean step: waiting for rollouts, training, weight hand-over; the black line is its end. Where rollouts go "
        "on all the time they have a lane of their own. Evaluations do not count.",
        (
            _panel("Where a step's time goes", comparison, panels.step_anatomy),
            _panel("What gets done", comparison, lambda axes, all_: panels.quantities(axes, all_, _QUANTITIES)),
            _by_steps(comparison, "Seconds of a step", metric("step_s"), _from_zero),
            _by_steps(comparison, "Seconds of waiting for rollouts", metric("rollout_s"), _from_zero),
            _by_steps(comparison, "Seconds of training in a step", metric("train_s"), _from_zero),
            _curve(comparison, "Environments in use", environments_in_use, "steps", _share),
        ),
    )  # fmt: skip
    yield Section(
        "Learning",
        "Loss, entropy and KL are means over the trained tokens of a step.",
        (
            _by_steps(comparison, "Loss", metric("loss")),
            _by_steps(comparison, "Entropy", metric("entropy"), _from_zero),
            _by_steps(
                comparison, "KL to the frozen reference", metric("kl"), missing="not measured: loss.kl_coefficient is 0"
            ),
            _by_steps(comparison, "Gradient norm", metric("grad_norm"), _from_zero),
            _by_steps(comparison, "Groups kept", metric("groups_kept"), _from_zero),
            _by_steps(comparison, "Groups filtered for lack of signal", metric("groups_filtered"), _from_zero),
        ),
    )
    yield Section(
        "Off-policy",
        "Staleness: policy versions between the sampling of a token and the update that trains on it. Log-prob gap: "
        "mean exp|training log-prob − rollout log-prob|; 1 is perfect agreement. With staleness the policy's own drift "
        "is in it, so the limit holds for steps without.",
        (
            _by_steps(comparison, "Staleness, mean over tokens", metric("staleness_mean"), _from_zero),
            _by_steps(comparison, "Staleness, largest", metric("staleness_max"), _bounds),
            _by_steps(comparison, "Log-prob gap", metric("logprob_gap"), _gap),
        ),
    )


def _by_steps(
    comparison: Comparison, title: str, of: Callable[[Run], Points], finish: Finish | None = None, missing: str = ""
) -> Chart:
    return _curve(comparison, title, of, "steps", finish, missing)


def _curve(
    comparison: Comparison, title: str, of: Callable[[Run], Points], axis: Axis, finish: Finish | None = None,
    missing: str = "",
) -> Chart:  # fmt: skip
    def draw(axes: Axes, comparison: Comparison) -> bool:
        drawn = panels.curves(axes, comparison.arms, of, axis, markers=finish is _success)
        if drawn and finish is not None:
            finish(axes, comparison)
        panels.name_line_ends(axes, comparison.arms, of, axis)
        return drawn

    return _panel(title, comparison, draw, missing or "no run says this")


def _panel(
    title: str, comparison: Comparison, draw: Callable[[Axes, Comparison], bool | None], missing: str = ""
) -> Chart:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(dict(RC)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        if draw(figure.subplots(), comparison) is False:
            return Chart(title, missing=missing)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Chart(title, file.getvalue())


def _success(axes: Axes, comparison: Comparison) -> None:
    panels.percent_axis(axes)
    panels.target_line(axes, comparison.target)


def _share(axes: Axes, _: Comparison) -> None:
    panels.percent_axis(axes)


def _from_zero(axes: Axes, _: Comparison) -> None:
    axes.set_ylim(bottom=0)


def _bounds(axes: Axes, comparison: Comparison) -> None:
    """The bounds that the runs were given, under the same axis."""
    bounds = _settings(comparison, "rollout.max_staleness")
    axes.set_ylim(-0.1, 1.25 * max(1.0, axes.get_ylim()[1], *bounds))
    for bound in bounds:
        panels.limit_line(axes, bound, f"bound {bound:g}")


def _gap(axes: Axes, _: Comparison) -> None:
    limit = Gates().logprob_gap
    axes.set_ylim(0.999, max(axes.get_ylim()[1], limit + 0.01))
    axes.ticklabel_format(axis="y", useOffset=False)
    panels.limit_line(axes, limit, f"limit {limit:g} without staleness")


def _settings(comparison: Comparison, key: str) -> Sequence[float]:
    """The numbers that the asynchronous arms have under a key."""
    values = {arm.settings.get(key) for arm in comparison.arms if arm.backend != SYNCHRONOUS}
    return sorted(value for value in values if isinstance(value, int | float))
