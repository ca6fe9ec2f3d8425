"""The ladder as a person reads it: on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from trainers.compare.escaping import prose
from trainers.parity.cases import CASES
from trainers.parity.greedy import LIVE_CASES
from trainers.parity.ladder import Climb
from trainers.parity.rungs import Measurement, Rung


def table(ladder: Climb) -> Table:
    """Rung x phase: the worst error, beside what is allowed."""
    title = "Worst error of every rung"
    phases = _phases(ladder)
    columns = ["rung", "allowed", *(f"phase {phase}" for phase in phases)]
    out = Table(*columns, title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for rung in ladder.rungs:
        cells = [ladder.worst(phase, rung) for phase in phases]
        said = (Text(_cell(cell).removesuffix(" ok"), style=_style(cell)) for cell in cells)
        out.add_row(_title(rung), _allowed(ladder, rung), *said)
    return out


def markdown(ladder: Climb) -> str:
    """The same table, known differences, then every single measurement, what failed first."""
    rungs, phases = ladder.rungs, _phases(ladder)
    lines = [
        "# Parity ladder",
        "",
        f"Measured on {prose(ladder.source)}. Verdict: **{'passed' if ladder.passed else 'FAILED'}**. Every cell is "
        "the worst error over all cases.",
        "",
        "| rung | allowed | " + " | ".join(f"phase {phase}" for phase in phases) + " |",
        "|---" * (len(phases) + 2) + "|",
    ]
    for rung in rungs:
        cells = " | ".join(_cell(ladder.worst(phase, rung)) for phase in phases)
        lines.append(f"| {_title(rung)} | {_allowed(ladder, rung)} | {cells} |")
    if known := [f"- phase {m.phase}, {prose(m.piece)}: {prose(m.note)}" for m in ladder.measurements if m.known]:
        lines += ["", "## Known differences", "", *known]
    about = (f"- {_title(rung)}: {rung.measure}; at most {_allowed(ladder, rung)}" for rung in rungs)
    lines += ["", "## Rungs", "", *about]
    names = {m.piece.rpartition("/")[2] for m in ladder.measurements}
    if cases := [f"- {case.name}: {case.about}" for case in (*CASES, *LIVE_CASES) if case.name in names]:
        lines += ["", "## Cases", "", *cases]
    lines += _details(ladder)
    return "\n".join(lines) + "\n"


def _details(ladder: Climb) -> Iterator[str]:
    header = "| phase | rung | case | error | at most | | |"
    yield from ("", "## All measurements", "", header, "|---" * 7 + "|")
    for m in sorted(ladder.measurements, key=lambda m: (m.passed, m.phase, m.rung.number)):
        figures = (_number(m.error), _number(m.allowed), _verdict(m))
        yield "| " + " | ".join((str(m.phase), _title(m.rung), prose(m.piece), *figures, prose(m.note))) + " |"


def failures(ladder: Climb) -> list[str]:
    """A line for every measurement that failed."""
    return [
        f"phase {m.phase}, rung {m.rung.number} ({m.rung.name}), {m.piece}: {_number(m.error)}, allowed "
        f"{_number(m.allowed)}" + (f": {m.note}" if m.note else "")
        for m in ladder.measurements
        if not m.passed
    ]


def _phases(ladder: Climb) -> list[int]:
    return sorted({m.phase for m in ladder.measurements})


def _title(rung: Rung) -> str:
    return f"{rung.number} {rung.name}"


def _allowed(ladder: Climb, rung: Rung) -> str:
    """The rung's tolerance, where it is that of every measurement."""
    own = all(m.allowed == rung.tolerance for m in ladder.measurements if m.rung == rung)
    return _number(rung.tolerance) if own else "what bfloat16 costs"


def _cell(worst: Measurement | None) -> str:
    if worst is None:
        return "not run"
    of = f" of {_number(worst.allowed)}" if worst.allowed != worst.rung.tolerance else ""
    return f"{_number(worst.error)}{of} {_verdict(worst)}"


def _verdict(m: Measurement) -> str:
    return "ok" if m.passed else "FAILED"


def _style(worst: Measurement | None) -> str:
    return "dim" if worst is None else "green" if worst.passed else "bold red"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"
