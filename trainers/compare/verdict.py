"""Go or no-go: may runs of one configuration (a backend, a phase) take the place of those of another?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.compare.bootstrap import Sample, difference_of, evaluation_noise
from trainers.compare.figures import final_success
from trainers.compare.power import episodes_needed, seeds_needed
from trainers.compare.runs import SYNCHRONOUS, Run, number
from trainers.compare.settings import differences
from trainers.compare.words import points

YARDSTICK = ("env.", "model.", "reward.", "rollout.max_turns", "rollout.temperature", "eval.episodes")
"""Keys, and sections, that say what a success rate is a rate of."""


Decision = Literal["go", "undecided", "no-go"]


@dataclass(frozen=True)
class Gates:
    """What a candidate has to keep: `success_margin` is how far the lower end of the interval of the difference of
    final success may lie below zero, `logprob_gap` the largest mean exp|training log-prob - rollout log-prob| of a step
    without staleness, `infra_errors` the largest share of its episodes lost to infrastructure."""

    success_margin: float = 0.05
    logprob_gap: float = 1.05
    infra_errors: float = 0.05


@dataclass(frozen=True)
class Check:
    """One gate: whether it is passed, and why in a sentence with the figures. One that is not passed may be
    `undecided`: the figures say neither yes nor no."""

    name: str
    passed: bool
    reason: str
    undecided: bool = False

    @property
    def word(self) -> str:
        return "pass" if self.passed else "undecided" if self.undecided else "FAIL"


@dataclass(frozen=True)
class Verdict:
    """`go` when every gate is passed, `decision` when in a word; `reasons` holds a line for each gate."""

    go: bool
    reasons: list[str]
    checks: tuple[Check, ...]

    @property
    def decision(self) -> Decision:
        return decision_of(self.checks)


def decision_of(checks: Sequence[Check]) -> Decision:
    """No-go when a gate fails, undecided when none does but not all are passed."""
    if all(check.passed for check in checks):
        return "go"
    return "undecided" if all(check.passed or check.undecided for check in checks) else "no-go"


def judge(reference: Sequence[Run], candidate: Sequence[Run], gates: Gates = Gates()) -> Verdict:
    """Judge finished runs of a candidate against finished runs of the reference, over any seeds."""
    checks = (
        _all_finished(reference, candidate),
        _same_yardstick(reference, candidate),
        _not_inferior(reference, candidate, gates.success_margin),
        _staleness_bound(candidate),
        _logprob_gap(candidate, gates.logprob_gap),
        _no_skipped_updates(candidate),
        _infra_errors(candidate, gates.infra_errors),
    )
    reasons = [f"{check.word}: {check.name}: {check.reason}" for check in checks]
    return Verdict(all(check.passed for check in checks), reasons, checks)


def _all_finished(reference: Sequence[Run], candidate: Sequence[Run]) -> Check:
    name = "finished runs"
    if not reference or not candidate:
        return Check(
            name, False, f"{len(reference)} of the reference, {len(candidate)} of the candidate; each needs one"
        )
    unfinished = [run.name for run in (*reference, *candidate) if not run.finished]
    if unfinished:
        return Check(name, False, f"no summary.json in {', '.join(unfinished)}")
    return Check(name, True, f"{len(candidate)} against {len(reference)}")


def _same_yardstick(reference: Sequence[Run], candidate: Sequence[Run]) -> Check:
    name = "same task, model and evaluation"
    runs = (*reference, *candidate)
    unequal = [key for key, _ in differences([run.settings for run in runs]) if key.startswith(YARDSTICK)]
    return Check(name, not unequal, f"different {', '.join(unequal)}" if unequal else "equal")


def _not_inferior(reference: Sequence[Run], candidate: Sequence[Run], margin: float) -> Check:
    name = "final success not inferior"
    ours, theirs = _final_samples(candidate), _final_samples(reference)
    if ours is None or theirs is None:
        return Check(name, False, "no evaluation after the last step of every run")
    estimate = difference_of(ours, theirs)
    kind, runs = "95 % interval", f"{len(candidate)} against {len(reference)} runs"
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        low, high = evaluation_noise(ours, theirs)
        kind, runs = "interval over evaluation episodes only", f"{runs}: none over seeds with a single run"
    measured = f"difference {points(estimate.mean)} points, {kind} {points(low)} to {points(high)} ({runs})"
    if low >= -margin:
        return Check(name, True, f"{measured}; its lower end is above {points(-margin)}")
    if high < -margin:
        return Check(name, False, f"{measured}; its upper end is below {points(-margin)}")
    way = _what_would_decide(ours, theirs, abs(estimate.mean + margin))
    return Check(name, False, f"{measured}; {points(-margin)} lies in it: {way}", undecided=True)


def _what_would_decide(ours: Sequence[Sample], theirs: Sequence[Sample], distance: float) -> str:
    """How many seeds or episodes, should difference and spread stay as they are."""
    seeds, episodes = seeds_needed(ours, theirs, distance), episodes_needed(ours, theirs, distance)
    ways = [f"about {seeds} seeds a side"] if seeds else []
    ways += [f"{episodes:,} evaluation episodes a run"] if episodes else []
    if not ways:
        return "no affordable number of seeds or episodes would tell"
    single = "" if seeds or min(len(ours), len(theirs)) > 1 else ", of these seeds only"
    return f"{' or '.join(ways)} would decide, should it stay so{single}"


def _final_samples(runs: Sequence[Run]) -> list[Sample] | None:
    samples = [final_success(run) for run in runs]
    known = [sample for sample in samples if sample is not None]
    return known if known and len(known) == len(runs) else None


def _staleness_bound(runs: Sequence[Run]) -> Check:
    name = "staleness bound kept"
    over, seen = [], []
    for run in runs:
        bound, worst = _bound(run), _largest(run, "staleness_max")
        if bound is None or not math.isfinite(worst):
            return Check(name, False, f"{run.name} does not say rollout.max_staleness or staleness_max")
        seen.append((worst, bound))
        if worst > bound:
            over.append(f"{run.name} reached {worst:g} with bound {bound:g}")
    if not seen or over:
        return Check(name, False, "; ".join(over) or "no runs")
    worst, bound = max(seen)
    return Check(name, True, f"largest {worst:g}, bound {bound:g}")


def _bound(run: Run) -> float | None:
    """The most versions that a trained token may be old: what replay allows, where that is more."""
    value: Any = 0 if run.backend == SYNCHRONOUS else run.settings.get("rollout.max_staleness")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    replayed: Any = run.settings.get("replay.max_age", 0) if run.settings.get("replay.share", 0.0) else 0
    return float(max(value, replayed))


def _logprob_gap(runs: Sequence[Run], limit: float) -> Check:
    """Judged where rollout and training log-probs belong to the same weights."""
    name = "log-probs agree"
    gaps = [run.logprob_gaps(stale=False) for run in runs]
    if not gaps or not all(gaps):
        return Check(name, False, "not every run has a logprob_gap of a step without staleness")
    worst = max(map(max, gaps))
    judged, steps = sum(map(len, gaps)), sum(len(run.rows) for run in runs)
    reason = f"largest gap {worst:.4f}, limit {limit:g}; judged in {judged} of {steps} steps"
    return Check(name, worst <= limit, reason)


def _no_skipped_updates(runs: Sequence[Run]) -> Check:
    skipped = int(sum(_total(run, "updates_skipped") for run in runs))
    return Check("no update skipped", skipped == 0, f"{skipped} skipped")


def _infra_errors(runs: Sequence[Run], limit: float) -> Check:
    name = "few episodes lost"
    lost, scored = (sum(_total(run, key) for run in runs) for key in ("episodes_infra_error", "episodes"))
    if not lost + scored:
        return Check(name, False, "no run says how many episodes it played")
    share = lost / (lost + scored)
    return Check(name, share <= limit, f"{100 * share:.1f} %, limit {100 * limit:g} %")


def _largest(run: Run, key: str) -> float:
    values = [value for row in run.rows if math.isfinite(value := number(row, key))]
    return max(values, default=math.nan)


def _total(run: Run, key: str) -> float:
    return sum(value for row in run.rows if math.isfinite(value := number(row, key)))
