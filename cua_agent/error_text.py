"""Errors in one line for a person."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type's name where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def type_and_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
