"""The ladder as a person reads it: on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from trainers.parity.cases import CASES
from trainers.parity.ladder import Climb
from trainers.parity.rungs import Measurement, Rung


def table(ladder: Climb) -> Table:
    """Phase x rung: the worst error, below what is allowed."""
    rungs = ladder.rungs
    title = "Worst error of every rung"
    out = Table("", *map(_title, rungs), title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_row("allowed", *(_number(rung.tolerance) for rung in rungs), end_section=True)
    for phase in _phases(ladder):
        cells = [ladder.worst(phase, rung) for rung in rungs]
        out.add_row(f"phase {phase}", *(Text(_cell(cell).removesuffix(" ok"), style=_style(cell)) for cell in cells))
    return out


def markdown(ladder: Climb) -> str:
    """The same table, then every single measurement, what failed first."""
    rungs = ladder.rungs
    lines = [
        "# Parity ladder",
        "",
        f"Measured on {ladder.source}. Verdict: **{'passed' if ladder.passed else 'FAILED'}**. Every cell is the worst "
        "error over all cases, below the largest error that passes.",
        "",
        "| | " + " | ".join(map(_title, rungs)) + " |",
        "|---" * (len(rungs) + 1) + "|",
        "| allowed | " + " | ".join(_number(rung.tolerance) for rung in rungs) + " |",
    ]
    for phase in _phases(ladder):
        cells = " | ".join(_cell(ladder.worst(phase, rung)) for rung in rungs)
        lines.append(f"| phase {phase} | {cells} |")
    about = (f"- {_title(rung)}: {rung.measure}; at most {_number(rung.tolerance)}" for rung in rungs)
    lines += ["", "## Rungs", "", *about]
    names = {m.piece.rpartition("/")[2] for m in ladder.measurements}
    if cases := [f"- {case.name}: {case.about}" for case in CASES if case.name in names]:
        lines += ["", "## Cases", "", *cases]
    lines += _details(ladder)
    return "\n".join(lines) + "\n"


def _details(ladder: Climb) -> Iterator[str]:
    header = "| phase | rung | case | error | at most | | |"
    yield from ("", "## All measurements", "", header, "|---" * 7 + "|")
    for m in sorted(ladder.measurements, key=lambda m: (m.passed, m.phase, m.rung.number)):
        cells = (m.phase, _title(m.rung), m.piece, _number(m.error), _number(m.rung.tolerance), _verdict(m), m.note)
        yield "| " + " | ".join(map(str, cells)) + " |"


def failures(ladder: Climb) -> list[str]:
    """A line for every measurement that failed."""
    return [
        f"phase {m.phase}, rung {m.rung.number} ({m.rung.name}), {m.piece}: {_number(m.error)}, allowed "
        f"{_number(m.rung.tolerance)}" + (f": {m.note}" if m.note else "")
        for m in ladder.measurements
        if not m.passed
    ]


def _phases(ladder: Climb) -> list[int]:
    return sorted({m.phase for m in ladder.measurements})


def _title(rung: Rung) -> str:
    return f"{rung.number} {rung.name}"


def _cell(worst: Measurement | None) -> str:
    if worst is None:
        return "not run"
    return f"{_number(worst.error)} {_verdict(worst)}"


def _verdict(m: Measurement) -> str:
    return "ok" if m.passed else "FAILED"


def _style(worst: Measurement | None) -> str:
    return "dim" if worst is None else "green" if worst.passed else "bold red"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"
