"""What can be typed, one rule in every world: a text is typed as it is, or not at all and the agent is told why."""

from __future__ import annotations

import unicodedata

MAX_TEXT = 2000
"""Longest text that one call may type or report, in characters."""


def untypeable(text: str, *, lines: bool) -> str | None:
    """Why `text` cannot be typed as it is, or None; `lines`: the field holds several lines."""
    if len(text) > MAX_TEXT:
        return f"nothing was typed: the text has {len(text)} characters, {MAX_TEXT} are possible"
    if not lines and ("\n" in text or "\r" in text):
        return "nothing was typed: this field holds one line and the text has several"
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t" for letter in text):
        return "nothing was typed: the text holds a control character or half a surrogate pair"
    return None
