"""Rung 5: live runs over seeds learn the same, within the interval that a few seeds allow."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.compare.bootstrap import Sample, difference_of, evaluation_noise
from trainers.compare.figures import final_success
from trainers.compare.runs import SYNCHRONOUS, Run, load_run
from trainers.compare.session import Session, prepare
from trainers.compare.settings import differences
from trainers.compare.verdict import YARDSTICK
from trainers.compare.words import points
from trainers.config import ConfigError
from trainers.parity.errors import FAR
from trainers.parity.rungs import LEARNING, Measurement
from trainers.run.commands import TRAIN

PHASES = (1, 2, 3)


def session_for(arguments: Sequence[str]) -> Session:
    """The comparison that `arguments`, keys of `compare.py`, ask for: of all phases with legacy unless they say which
    runs. Raises `ConfigError`."""
    from trainers.compare.options import read_arguments

    named = {argument.partition("=")[0] for argument in arguments}
    default = [] if named & {"runs", "backends", "phase"} else ["backends=[legacy,areal]", f"phase={list(PHASES)}"]
    return prepare(*read_arguments([*default, *arguments]), TRAIN)


def runs_of(session: Session) -> list[Run]:
    """Every run of the comparison that is there."""
    from trainers.compare.plan import find

    finished = [found.finished for found in find(session.planned) if found.finished is not None]
    return [load_run(directory) for directory in (*finished, *session.given)]


def measure_learning(runs: Sequence[Run]) -> list[Measurement]:
    """A measurement for each phase that has runs: how far below zero the interval of its final success, minus that of
    the legacy runs, reaches. Raises `ConfigError` when one side has no runs."""
    legacy = [run for run in runs if run.backend == SYNCHRONOUS]
    by_phase: dict[int, list[Run]] = {}
    for run in runs:
        if run.backend != SYNCHRONOUS:
            by_phase.setdefault(int(run.settings["phase"]), []).append(run)
    if not legacy or not by_phase:
        raise ConfigError(
            f"runs: {len(legacy)} of backend=legacy, {len(runs) - len(legacy)} of backend=areal; allowed: some of each"
        )
    return [_measure(phase, legacy, by_phase[phase]) for phase in sorted(by_phase)]


def _measure(phase: int, legacy: Sequence[Run], areal: Sequence[Run]) -> Measurement:
    piece = f"{len(areal)} against {len(legacy)} runs"
    both = (*legacy, *areal)
    if unfinished := [run.name for run in both if not run.finished]:
        return Measurement(LEARNING, phase, piece, FAR, f"not finished: {', '.join(unfinished)}")
    unequal = [key for key, _ in differences([run.settings for run in both]) if key.startswith(YARDSTICK)]
    if unequal:
        return Measurement(LEARNING, phase, piece, FAR, f"not comparable: different {', '.join(unequal)}")
    theirs, ours = _final(areal), _final(legacy)
    if not theirs or not ours:
        return Measurement(LEARNING, phase, piece, FAR, "no evaluation after the last step of every run")
    estimate = difference_of(theirs, ours)
    kind, low, high = "95 % interval over seeds", estimate.low, estimate.high
    if low is None or high is None:
        kind, (low, high) = "interval over evaluation episodes only", evaluation_noise(theirs, ours)
    note = f"difference of final success {points(estimate.mean)} points, {kind} {points(low)} to {points(high)}"
    return Measurement(LEARNING, phase, piece, max(0.0, -low), note)


def _final(runs: Sequence[Run]) -> list[Sample]:
    """Final success of every run; empty when it is missing in one."""
    samples = [final_success(run) for run in runs]
    known = [sample for sample in samples if sample is not None]
    return known if len(known) == len(samples) else []
