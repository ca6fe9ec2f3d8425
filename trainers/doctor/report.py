"""What a person and a program see of an examination."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from cua_agent.secrets import mask_text
from trainers.doctor.examination import Result
from trainers.doctor.finding import Finding, Status

_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.ERROR: "bold red", Status.NOT_CHECKED: "dim"}
_STATUS_WIDTH = max(map(len, Status)) + 2


class Table:
    """A table that grows row by row, as the checks end. No line is broken: what is in it can be pasted."""

    def __init__(self, console: Console, names: Iterable[str]) -> None:
        self._console = console
        self._width = max(map(len, names), default=0) + 2

    def row(self, name: str, finding: Finding, serves: str = "") -> None:
        """One finding, and what it is needed for where that is to be shown; its remedy on a line of its own."""
        line = Text(f"{finding.status:<{_STATUS_WIDTH}}", style=_COLOURS[finding.status])
        line.append(f"{name:<{self._width}}", style="bold")
        line.append(mask_text(finding.what), style="default")
        if serves:
            line.append(f" (for {serves})", style="dim")
        self._console.print(line, soft_wrap=True)
        if finding.remedy:
            indent = " " * (_STATUS_WIDTH + self._width)
            self._console.print(Text(f"{indent}-> {mask_text(finding.remedy)}", style="cyan"), soft_wrap=True)
        self._console.file.flush()


def verdict(findings: Sequence[Finding]) -> str:
    """How many of each kind there were, and what that means."""
    counts = Counter(finding.status for finding in findings)
    said = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    return f"{said}: {'not ready' if counts[Status.ERROR] else 'ready'}"


def failed(findings: Iterable[Finding]) -> bool:
    """Whether there is an error among them."""
    return any(finding.status is Status.ERROR for finding in findings)


def to_json(results: Sequence[Result]) -> str:
    """For programs: `ready`, and every check in order."""
    rows = [
        {
            "check": result.check.name,
            "serves": result.check.serves,
            "status": result.finding.status.value,
            "what": mask_text(result.finding.what),
            "remedy": mask_text(result.finding.remedy),
        }
        for result in results
    ]
    return json.dumps({"ready": not failed(result.finding for result in results), "checks": rows}, indent=1)
