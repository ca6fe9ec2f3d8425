"""The final figures of a comparison: one number a run, a mean and an interval an arm, a contrast between arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from trainers.compare.arms import Arm
from trainers.compare.bootstrap import Estimate, Sample, difference_of, mean_of, ratio_of
from trainers.compare.runs import Axis, Evaluation, Run, number
from trainers.compare.settings import PRICE

LAST_STEPS = 5
"""How many of the last steps a figure "at the end" is the mean of."""

Unit = Literal["%", "", "min", "s", "per hour", "per s", "count", "gap"]
"""% is a share of 1 shown in percent; "" a plain number, a gap one near 1, a count one that is often whole."""


@dataclass(frozen=True)
class Figure:
    """What is measured of a run. `of` gives None where the run does not say; arms are contrasted by `contrast`."""

    key: str
    title: str
    unit: Unit
    of: Callable[[Run], Sample | None]
    contrast: Literal["difference", "ratio"] = "difference"


@dataclass(frozen=True)
class Cell:
    """A figure of an arm: over the `known` of its `total` runs that say it; no estimate when not all of them do."""

    estimate: Estimate | None
    known: int
    total: int


@dataclass(frozen=True)
class FigureRow:
    """A figure in every arm, and against the first arm (None for that one, and where a side is not known)."""

    figure: Figure
    cells: tuple[Cell, ...]
    contrasts: tuple[Estimate | None, ...]


def figures(target: float) -> list[Figure]:
    """All figures of the report; `target` is the success rate whose time is taken."""
    goal = f"{100 * target:g} %"
    return [
        Figure("success_start", "success on unseen seeds, start", "%", lambda run: _at_start(run, "seeds")),
        Figure("success_end", "success on unseen seeds, end", "%", final_success),
        Figure("success_best", "success on unseen seeds, best", "%", _best),
        Figure("templates_end", "success on unseen templates, end", "%", lambda run: _at_end(run, "templates")),
        Figure("generalisation_gap", "unseen seeds minus unseen templates, end", "%", _generalisation_gap),
        Figure("reward_end", "reward on unseen seeds, end", "", _final_reward),
        Figure("minutes", "training time", "min", _total_minutes, "ratio"),
        Figure("minutes_to_target", f"training time to {goal} success", "min", _to_target(target, "minutes"), "ratio"),
        Figure("episodes_to_target", f"episodes to {goal} success", "count", _to_target(target, "episodes"), "ratio"),
        Figure("boxes_to_target", f"environments to {goal} success", "min", _to_target(target, "box_minutes"), "ratio"),
        Figure("price_to_target", f"price of environments to {goal} success", "", _price_to_target(target), "ratio"),
        Figure("steps_to_target", f"steps to {goal} success", "count", _to_target(target, "steps"), "ratio"),
        Figure("steps_per_hour", "training steps per hour", "per hour", steps_per_hour, "ratio"),
        Figure("episodes_per_hour", "episodes per hour", "per hour", _per_hour("episodes"), "ratio"),
        Figure("tokens_per_s", "tokens trained on per second", "per s", _tokens_per_s, "ratio"),
        Figure("step_s", "seconds of a step", "s", _mean("step_s"), "ratio"),
        Figure("rollout_s", "waiting for rollouts in a step", "s", _mean("rollout_s")),
        Figure("train_s", "training in a step", "s", _mean("train_s")),
        Figure("sync_s", "weight hand-over in a step", "s", _mean("sync_s")),
        Figure("environments", "environments in use", "%", environments_in_use),
        Figure("staleness_mean", "staleness, mean (policy versions)", "", _mean("staleness_mean")),
        Figure("staleness_max", "staleness, largest (policy versions)", "count", _largest("staleness_max")),
        Figure("logprob_gap", "log-prob gap, largest of a step without staleness", "gap", _largest_gap(stale=False)),
        Figure("logprob_drift", "log-prob gap with staleness (policy drift in it)", "gap", _largest_gap(stale=True)),
        Figure("entropy_end", f"entropy, last {LAST_STEPS} steps", "", _at_last("entropy")),
        Figure("kl_end", f"KL to the reference, last {LAST_STEPS} steps", "", _at_last("kl")),
        Figure("filtered", "groups filtered for lack of signal", "%", _share("groups_filtered", "groups_kept")),
        Figure("infra_errors", "episodes lost to infrastructure", "%", _share("episodes_infra_error", "episodes")),
        Figure("updates_skipped", "updates skipped (not finite)", "count", _sum("updates_skipped")),
    ]


def category_figures(runs: Sequence[Run]) -> list[Figure]:
    """Final success on each category of tasks, and on each world, where there are several."""
    names = sorted({name for run in runs for evaluation in run.evaluated("seeds") for name in evaluation.by_category})
    found = [Figure(f"success_{name}", f"success on {name}, end", "%", partial(_on_category, name)) for name in names]
    return found if len(found) > 1 else []


def tabulate(arms: Sequence[Arm], figures: Sequence[Figure]) -> list[FigureRow]:
    """The figures that at least one run can say, over the finished runs of each arm."""
    rows = []
    for figure in figures:
        samples = [[figure.of(run) for run in arm.finished] for arm in arms]
        if any(sample is not None for of_arm in samples for sample in of_arm):
            rows.append(_row(figure, samples))
    return rows


def _row(figure: Figure, samples: Sequence[Sequence[Sample | None]]) -> FigureRow:
    known = [[sample for sample in of_arm if sample is not None] for of_arm in samples]
    whole = [bool(some) and len(some) == len(of_arm) for some, of_arm in zip(known, samples, strict=True)]
    cells = tuple(
        Cell(mean_of(some) if complete else None, len(some), len(of_arm))
        for some, of_arm, complete in zip(known, samples, whole, strict=True)
    )
    contrasts: list[Estimate | None] = [None]
    for some, complete in zip(known[1:], whole[1:], strict=True):
        contrasts.append(_contrast(figure, some, known[0]) if complete and whole[0] else None)
    return FigureRow(figure, cells, tuple(contrasts))


def _contrast(figure: Figure, candidate: Sequence[Sample], reference: Sequence[Sample]) -> Estimate | None:
    if figure.contrast == "difference":
        return difference_of(candidate, reference)
    positive = all(sample.value > 0 for sample in (*candidate, *reference))
    return ratio_of(candidate, reference) if positive else None


def final_success(run: Run) -> Sample | None:
    """Held-out success of a run's last weights, on unseen seeds."""
    return _at_end(run, "seeds")


def steps_per_hour(run: Run) -> Sample | None:
    """Training steps per hour, evaluations not counted."""
    seconds = run.column("step_s")
    return _sample(3600 * len(seconds) / seconds.sum()) if seconds.size and seconds.sum() > 0 else None


def environments_in_use(run: Run) -> Sample | None:
    """Environments lent to an episode, as a share of the pool over the training time: idle environments during an
    update count against a backend that waits for it."""
    use, step = run.environments_in_use(), run.column("step_s")
    known = np.isfinite(use) & np.isfinite(step)
    total = step[known].sum()
    return _sample((use * step)[known].sum() / total) if total > 0 else None


def _at_start(run: Run, split: str) -> Sample | None:
    return next((_rate(evaluation) for evaluation in run.evaluated(split) if evaluation.step == 0), None)


def _at_end(run: Run, split: str) -> Sample | None:
    evaluations = run.evaluated(split)
    last_step = run.steps[-1] if run.rows else 0
    return _rate(evaluations[-1]) if evaluations and evaluations[-1].step >= last_step else None


def _generalisation_gap(run: Run) -> Sample | None:
    seeds, templates = _at_end(run, "seeds"), _at_end(run, "templates")
    return None if seeds is None or templates is None else _sample(seeds.value - templates.value)


def _on_category(name: str, run: Run) -> Sample | None:
    evaluations = run.evaluated("seeds")
    if _at_end(run, "seeds") is None or name not in evaluations[-1].by_category:
        return None
    successes, episodes = evaluations[-1].by_category[name]
    return Sample(successes / episodes, episodes)


def _best(run: Run) -> Sample | None:
    evaluations = run.evaluated("seeds")
    return _rate(max(evaluations, key=lambda evaluation: evaluation.success)) if evaluations else None


def _final_reward(run: Run) -> Sample | None:
    evaluations = run.evaluated("seeds")
    return _sample(evaluations[-1].reward) if evaluations else None


def _total_minutes(run: Run) -> Sample | None:
    return _sample([*run.axis("minutes").values()][-1]) if run.rows else None


def _to_target(target: float, axis: Axis) -> Callable[[Run], Sample | None]:
    def of(run: Run) -> Sample | None:
        spent = run.axis(axis)
        reached = (e.step for e in run.evaluated("seeds") if e.success >= target and e.step in spent)
        step = next(reached, None)
        return None if step is None else _sample(spent[step])

    return of


def _price_to_target(target: float) -> Callable[[Run], Sample | None]:
    """In the currency of `env.price_per_box_hour`; nothing where that is not set."""
    box_minutes = _to_target(target, "box_minutes")

    def of(run: Run) -> Sample | None:
        price, spent = run.settings.get(PRICE), box_minutes(run)
        if spent is None or not isinstance(price, int | float) or price <= 0:
            return None
        return _sample(price * spent.value / 60)

    return of


def _per_hour(key: str) -> Callable[[Run], Sample | None]:
    def of(run: Run) -> Sample | None:
        count, seconds = run.column(key).sum(), run.column("step_s").sum()
        return _sample(3600 * count / seconds) if seconds > 0 else None

    return of


def _tokens_per_s(run: Run) -> Sample | None:
    seconds = run.column("step_s").sum()
    return _sample(run.column("tokens").sum() / seconds) if seconds > 0 else None


def _share(part: str, rest: str) -> Callable[[Run], Sample | None]:
    def of(run: Run) -> Sample | None:
        some, others = run.column(part).sum(), run.column(rest).sum()
        return _sample(some / (some + others)) if some + others > 0 else None

    return of


def _reduced(
    key: str, reduce: Callable[[list[float]], float], last: int | None = None
) -> Callable[[Run], Sample | None]:
    """`reduce` over the known values of a metric, of the `last` steps only if given."""

    def of(run: Run) -> Sample | None:
        rows = run.rows[-last:] if last else run.rows
        values = [value for row in rows if math.isfinite(value := number(row, key))]
        return _sample(reduce(values)) if values else None

    return of


def _mean(key: str) -> Callable[[Run], Sample | None]:
    return _reduced(key, lambda values: sum(values) / len(values))


def _largest(key: str) -> Callable[[Run], Sample | None]:
    return _reduced(key, max)


def _largest_gap(*, stale: bool) -> Callable[[Run], Sample | None]:
    return lambda run: _sample(max(run.logprob_gaps(stale=stale), default=math.nan))


def _sum(key: str) -> Callable[[Run], Sample | None]:
    return _reduced(key, sum)


def _at_last(key: str) -> Callable[[Run], Sample | None]:
    return _reduced(key, lambda values: sum(values) / len(values), LAST_STEPS)


def _rate(evaluation: Evaluation) -> Sample:
    return Sample(evaluation.success, evaluation.episodes)


def _sample(value: float) -> Sample | None:
    return Sample(float(value)) if math.isfinite(value) else None
