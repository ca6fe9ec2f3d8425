"""Everything a report says, computed once; picture, page, text and tables only show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.compare import words
from trainers.compare.arms import Arm, sort_into_arms
from trainers.compare.bootstrap import Estimate
from trainers.compare.figures import FigureRow, category_figures, figures, tabulate
from trainers.compare.runs import Run
from trainers.compare.settings import differences
from trainers.compare.verdict import Gates, Verdict, judge


@dataclass(frozen=True)
class Comparison:
    """`arms[0]` is the reference; `verdicts` belong to the other arms, in their order; `settings` are the differing
    configuration keys with the value of each arm; `notes` say what a reader must know about single runs."""

    arms: tuple[Arm, ...]
    rows: tuple[FigureRow, ...]
    settings: tuple[tuple[str, list[str]], ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    target: float
    margin: float

    @property
    def reference(self) -> Arm:
        """The arm that others are compared with."""
        return self.arms[0]

    @property
    def candidates(self) -> tuple[Arm, ...]:
        """The other arms."""
        return self.arms[1:]

    def row(self, key: str) -> FigureRow | None:
        """The figure called `key` of every arm; None where nobody has it."""
        return next((row for row in self.rows if row.figure.key == key), None)

    def contrast(self, key: str, arm: Arm) -> Estimate | None:
        """A figure of `arm` against the reference; None where it is not known on both sides."""
        row = self.row(key)
        return row.contrasts[self.arms.index(arm)] if row else None

    def mean(self, key: str, arm: Arm) -> float | None:
        """Mean of the figure called `key` over an arm's runs; None where it was not measured."""
        row = self.row(key)
        estimate = row.cells[self.arms.index(arm)].estimate if row else None
        return estimate.mean if estimate else None


def compare(runs: Sequence[Run], target: float, margin: float, notes: Sequence[str] = ()) -> Comparison:
    """Compare runs of one or several configurations; `target` is the success rate whose time is taken, `margin` how
    much worse a candidate may be at the lower end of the interval."""
    arms = sort_into_arms(runs)
    gates = Gates(success_margin=margin)
    return Comparison(
        arms=tuple(arms),
        rows=tuple(tabulate(arms, [*figures(target), *category_figures(runs)])),
        settings=tuple(differences([arm.settings for arm in arms])),
        verdicts=tuple(judge(arms[0].finished, arm.finished, gates) for arm in arms[1:]),
        notes=(*notes, *_notes(arms)),
        target=target,
        margin=margin,
    )


def success_in_words(comparison: Comparison, arm: Arm) -> str:
    """How the final success of a candidate compares, in a sentence."""
    row = comparison.row("success_end")
    reference, place = comparison.reference, comparison.arms.index(arm)
    if row is None or (estimate := row.contrasts[place]) is None:
        return (
            f"Final success of {arm.label} cannot be compared: not every arm has a finished run with a last evaluation."
        )
    ours, theirs = row.cells[place].estimate, row.cells[0].estimate
    assert ours is not None and theirs is not None  # a contrast has both sides
    measured = (
        f"{arm.label} ends at {words.value(ours.mean, '%')} success on unseen seeds, {reference.label} at "
        f"{words.value(theirs.mean, '%')}: {words.points(estimate.mean)} points"
    )
    if estimate.low is None or estimate.high is None:
        return f"{measured}. One seed only on a side, so there is no interval and no claim about other seeds."
    interval = f"95 % interval {words.points(estimate.low)} to {words.points(estimate.high)}"
    return f"{judgement(estimate, comparison.margin)}: {measured}, {interval}."


def progress_in_words(comparison: Comparison, arm: Arm) -> str | None:
    """What one arm learnt, in a sentence; None where that was not measured."""
    start, end = (comparison.mean(key, arm) for key in ("success_start", "success_end"))
    if end is None:
        return None
    rise = "" if start is None else f"from {words.value(start, '%')} "
    minutes = comparison.mean("minutes_to_target", arm)
    goal = "" if minutes is None else f"; {100 * comparison.target:g} % after {words.value(minutes, 'min')} of training"
    seeds = "1 seed" if len(arm.finished) == 1 else f"{len(arm.finished)} seeds"
    return f"{arm.label}: success on unseen seeds goes {rise}to {words.value(end, '%')} over {seeds}{goal}."


def judgement(estimate: Estimate, margin: float) -> str:
    """What an interval of a difference of success rates allows to say."""
    if estimate.low is None or estimate.high is None:
        return "Not judged"
    if estimate.low > 0:
        return "Better"
    if estimate.low >= -margin:
        return "Not inferior"
    return "Inferior" if estimate.high < -margin else "Undecided"


def speed_in_words(comparison: Comparison, arm: Arm) -> str | None:
    """How fast a candidate is, in a sentence; None where nothing is known."""
    reference = comparison.reference.label
    parts = []
    speed = comparison.contrast("steps_per_hour", arm)
    if speed is not None:
        interval = "" if speed.low is None or speed.high is None else f" [{speed.low:.2f}, {speed.high:.2f}]"
        parts.append(f"{words.times(speed.mean)}{interval} the training steps per hour of {reference}")
    ours, theirs = (comparison.mean("minutes_to_target", each) for each in (arm, comparison.reference))
    if ours is not None and theirs is not None:
        goal = f"{100 * comparison.target:g} %"
        parts.append(
            f"{goal} success after {words.value(ours, 'min')} of training instead of {words.value(theirs, 'min')}"
        )
    return f"{arm.label}: {', '.join(parts)}." if parts else None


def _notes(arms: Sequence[Arm]) -> list[str]:
    notes = []
    for arm in arms:
        if len(arm.finished) == 1:
            notes.append(f"{arm.label}: one finished seed only, so no intervals.")
        for run in arm.runs:
            notes += run.notes
            if not run.finished:
                why = f"failed ({run.error})" if run.error else "not finished"
                notes.append(
                    f"{run.name}: {why} after step {run.steps[-1] if run.rows else 0}; drawn, but not in the figures."
                )
    seeds = {tuple(run.seed for run in arm.finished) for arm in arms}
    if len(seeds) > 1:
        notes.append("The arms have different seeds.")
    machines = {run.machine for arm in arms for run in arm.runs if run.machine}
    if len(machines) > 1:
        notes.append(f"The runs were made on {len(machines)} different machines: their minutes do not compare.")
    commits = {run.commit for arm in arms for run in arm.runs if run.commit}
    if len(commits) > 1:
        notes.append(f"The runs were made from {len(commits)} different commits.")
    return notes
