"""Where something is on the screen, from the tree of views that `uiautomator dump` writes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

_FILE = "/data/local/tmp/cua-views.xml"
DUMP = f"rm -f {_FILE}; uiautomator dump {_FILE} >/dev/null 2>&1; cat {_FILE}"
"""Writes the tree to stdout; ends with another code than 0 when the phone could not tell it (the screen moved)."""


def centre_of(tree: str, name: str) -> tuple[int, int] | None:
    """The pixel in the middle of the first view whose text or description is `name`, whatever its case; None when
    there is none."""
    wanted = name.strip().casefold()
    try:
        nodes = list(ElementTree.fromstring(tree).iter("node"))
    except ElementTree.ParseError:
        return None
    for node in nodes:
        names = (node.get("text", ""), node.get("content-desc", ""))
        bounds = re.fullmatch(r"\[(-?\d+),(-?\d+)\]\[(-?\d+),(-?\d+)\]", node.get("bounds", ""))
        if bounds and wanted in (each.strip().casefold() for each in names):
            left, top, right, bottom = map(int, bounds.groups())
            return (left + right) // 2, (top + bottom) // 2
    return None
