"""Phase gates: may a team move up to a phase, by the ladder and by two finished runs?"""

from __future__ import annotations

from collections.abc import Sequence

from trainers.compare.runs import SYNCHRONOUS, Run
from trainers.compare.verdict import Check, decision_of, judge
from trainers.parity.ladder import Climb
from trainers.parity.report import failures
from trainers.parity.rungs import LADDER

LEGACY = 0
"""The phase before the first."""


def decide(phase: int, ladder: Climb, reference: Run, candidate: Run) -> tuple[Check, ...]:
    """The checks that a move up to `phase` has to pass, all of them: the ladder's rungs on that phase, that `candidate`
    is a run of it and `reference` one of a lower phase, and `compare.py`'s own gates between the two."""
    return (
        _ladder_holds(phase, ladder),
        _right_runs(phase, reference, candidate),
        *judge([reference], [candidate]).checks,
    )


def phase_of(run: Run) -> int:
    """The phase of a run; `LEGACY` for the synchronous backend."""
    return LEGACY if run.backend == SYNCHRONOUS else int(run.settings["phase"])


def words(phase: int, checks: Sequence[Check]) -> str:
    """The verdict and its reasons, a line each."""
    lines = [f"{check.word}: {check.name}: {check.reason}" for check in checks]
    return "\n".join([f"phase {phase}: {decision_of(checks)}", *(f"  {line}" for line in lines)])


def _ladder_holds(phase: int, ladder: Climb) -> Check:
    name = "parity ladder"
    missing = [f"{rung.number} ({rung.name})" for rung in LADDER if not ladder.of(phase, rung)]
    if missing:
        return Check(name, False, f"not measured on phase {phase}: rung {', '.join(missing)}")
    broken = [m for m in ladder.measurements if m.phase == phase and not m.passed]
    if broken:
        first = next(line for line in failures(ladder) if line.startswith(f"phase {phase},"))
        return Check(name, False, f"{len(broken)} measurements failed, the first: {first}")
    count = sum(m.phase == phase for m in ladder.measurements)
    return Check(name, True, f"all {count} measurements of rungs 0 to {LADDER[-1].number} passed")


def _right_runs(phase: int, reference: Run, candidate: Run) -> Check:
    name = "runs of the right phases"
    before, after = phase_of(reference), phase_of(candidate)
    said = f"{reference.name} is {_named(before)}, {candidate.name} is {_named(after)}"
    return Check(name, after == phase and before < phase, said)


def _named(phase: int) -> str:
    return "legacy" if phase == LEGACY else f"phase {phase}"
