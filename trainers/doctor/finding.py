"""What a check finds, and what a check is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.doctor.context import Context


_REMEDY = re.compile(r"(.+)(?:; |: (?=set ))(.+)")


class Status(StrEnum):
    """How a check came out; an error would end the run or make it wrong."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One line about what was found, and one about what helps (empty when all is well)."""

    status: Status
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """`run` looks and changes nothing that it does not put back; `serves` says what the run needs it for. It is not
    run when one of the checks that it `needs` found an error. `helps` is the remedy of what it raises, where that does
    not name one."""

    name: str
    serves: str
    run: Callable[[Context], Finding]
    needs: tuple[str, ...] = ()
    helps: str = "docs/troubleshooting.md"


def ok(what: str) -> Finding:
    """All is well."""
    return Finding(Status.OK, what)


def warning(what: str, remedy: str) -> Finding:
    """The run works, and not as well as it could."""
    return Finding(Status.WARNING, what, remedy)


def error(what: str, remedy: str) -> Finding:
    """The run would end, or be wrong."""
    return Finding(Status.ERROR, what, remedy)


def not_checked(why: str) -> Finding:
    """It cannot be known here."""
    return Finding(Status.NOT_CHECKED, why)


def refused(message: object, helps: str) -> Finding:
    """An error in the words of a refusal. Its remedy stands behind its last semicolon, or begins with `set`; else it is
    what `helps`."""
    line = " ".join(str(message).split())
    parts = _REMEDY.fullmatch(line)
    return error(parts[1], parts[2]) if parts else error(line, helps)


def worst(findings: list[Finding]) -> Finding:
    """One finding of several: everything that is wrong, or, when nothing is, all that was seen."""
    order = (Status.ERROR, Status.WARNING, Status.NOT_CHECKED, Status.OK)
    status = min((finding.status for finding in findings), key=order.index)
    wrong = [finding for finding in findings if finding.status in (Status.ERROR, Status.WARNING)] or findings
    remedies = dict.fromkeys(finding.remedy for finding in wrong if finding.remedy)
    return Finding(status, "; ".join(finding.what for finding in wrong), "; ".join(remedies))
