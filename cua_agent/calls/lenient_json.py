"""JSON as models write it: strict JSON first, and where that fails, what can only mean one thing.

What is mended: raw line breaks and tabs in strings, brackets that are missing at the end of a turn which the model
ended itself, a `]` missing before a `}`, Python's True, False, None and tuples, and all that JSON5 allows (single
quotes, trailing commas, bare keys). What is not: a string without an end, a quote inside a string, a lone backslash, a
key that stands twice, anything that breaks off after a comma or colon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import json5

from cua_agent.calls.errors import CallError

LONGEST = 8000
"""Longest text that is mended, in characters: json5 reads some twenty thousand characters a second."""

_NOT_JSON = "the tool call is not valid JSON"
_CUT = "the turn was cut off at the token limit before its call was complete"
_CLOSERS = {"{": "}", "[": "]", "(": "]"}
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_WORDS = re.compile(r"\b(?:True|False|None)\b")
_ESCAPES = re.compile(r"\\(.)", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x1f]")
_PIECES = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<open>[{\[(])|(?P<close>[}\])])"""
    r"""|(?P<end></tool_call>|```)|(?P<quote>["'])|(?P<plain>[^"'{}\[\]()<`]+|[<`])""",
    re.DOTALL,
)


def read_object(text: str, start: int, *, truncated: bool) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at `start`, alone or in a list of its own, and where it ends; `truncated`: the token
    limit cut `text` off.

    Raises `CallError`.
    """
    try:
        value, end = _STRICT.raw_decode(text, start)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        mended, end = _mend(text[start : start + LONGEST], truncated=truncated)
        value, end = _read_json5(mended), start + end
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise CallError('the tool call must be a JSON object with "name" and "arguments"')
    return value, end


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    values = dict(pairs)
    if len(values) != len(pairs):
        raise CallError("a key stands twice in the tool call")
    return values


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def _read_json5(text: str) -> Any:
    try:
        return json5.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise CallError(_NOT_JSON) from None


def _mend(text: str, *, truncated: bool) -> tuple[str, int]:
    """`text` up to the end of the object that it begins with, as JSON5, and where that end is."""
    pieces: list[str] = []
    expected: list[str] = []
    end = 0
    for match in _PIECES.finditer(text):
        kind, piece = match.lastgroup, match.group()
        if kind == "end":
            break
        end = match.end()
        if kind == "quote":
            raise CallError(_CUT if truncated else "a string in the tool call has no end")
        if kind == "string":
            piece = _string(piece)
        elif kind == "plain":
            piece = _WORDS.sub(lambda word: _PYTHON[word.group()], piece)
        elif kind == "open":
            expected.append(_CLOSERS[piece])
            piece = "[" if piece == "(" else piece
        else:
            piece = _close("]" if piece == ")" else piece, expected)
        pieces.append(piece)
        if not expected:
            return "".join(pieces), end
    body = "".join(pieces).rstrip()
    if truncated:
        raise CallError(_CUT)
    if len(text) == LONGEST or body[-1:] in ("", ",", ":"):
        raise CallError(_NOT_JSON)
    return body + "".join(reversed(expected)), end


def _close(bracket: str, expected: list[str]) -> str:
    """`bracket`, after a "]" that is missing before it; takes what is closed off `expected`."""
    closed = ""
    if bracket == "}" and expected[-1] == "]" and "}" in expected:
        while expected[-1] == "]":
            closed += expected.pop()
    if expected.pop() != bracket:
        raise CallError(_NOT_JSON)
    return closed + bracket


def _string(literal: str) -> str:
    """A string literal with its raw control characters escaped. A backslash that means nothing certain is refused."""
    if any(escaped not in "\"'\\/bfnrtu" for escaped in _ESCAPES.findall(literal)):
        raise CallError("a backslash in the tool call is no JSON escape; write it twice")
    return _CONTROLS.sub(lambda control: f"\\u{ord(control.group()):04x}", literal)
