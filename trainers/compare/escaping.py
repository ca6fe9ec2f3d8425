"""Foreign text (names of directories, settings, errors) in Markdown and in tables for spreadsheets, as it stands."""

from __future__ import annotations

import html
import re
from typing import Any

_MARKS = re.compile(r"[\\`*|~]|(?<![^\W_])_|_(?![^\W_])|](?=[(\[:])|!(?=\[)")
_BLOCK = re.compile(r"^(\d*)([#+\-=.)])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def prose(text: str) -> str:
    """`text` as running text or a table's cell of Markdown: on one line, with no markup, link or HTML in it."""
    line = " ".join(text.split())
    return _BLOCK.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", html.escape(line, quote=False)))


def code(text: str) -> str:
    """`text` as a code span in a table's cell, on one line; nothing in it ends the span or the cell."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", r"\|")


def csv_cell(value: Any) -> Any:
    """`value` for a CSV file: a text that a spreadsheet would take for a formula is quoted with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
