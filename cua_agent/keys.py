"""Names of keys: one table for every world, whatever their case and spelling.

`Enter`, `Return` and `enter` are one key, and so are `ArrowUp`, `arrow_up` and `Up`, `Ctrl+A` and `control+a`. A world
says which keys it has and what it calls them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ALIASES = {
    "return": "enter",
    "esc": "escape",
    "ctrl": "control",
    "del": "delete",
    "ins": "insert",
    "pgup": "pageup",
    "pgdn": "pagedown",
    "pgdown": "pagedown",
    "up": "arrowup",
    "down": "arrowdown",
    "left": "arrowleft",
    "right": "arrowright",
    "spacebar": "space",
    "command": "meta",
    "cmd": "meta",
    "win": "meta",
    "windows": "meta",
    "super": "meta",
    "option": "alt",
}
_SHOWN = 20


class UnknownKey(ValueError):  # noqa: N818 (a normal event of an episode)
    """A key that a world does not have; the message names those that it has."""


def named(names: Iterable[str]) -> dict[str, str]:
    """A world's own `names` by the table's."""
    return {_squashed(name): name for name in names}


def keys_of(combination: str, names: Mapping[str, str], characters: str = "") -> list[str]:
    """The keys of a combination (``Enter``, ``Ctrl+A``) in order, as the world calls them.

    `names` are the world's names by the table's, `characters` the single characters that it can press besides; in a
    combination their case is none. Raises `UnknownKey`.
    """
    parts = _parts(combination, names, characters)
    found = [part if part in characters and part else names.get(canonical(part)) for part in parts]
    if not found or None in found:
        raise UnknownKey(f"unknown key {combination.strip()[:_SHOWN]!r}; allowed: {_listed(names, characters)}")
    return [key.lower() if len(found) > 1 and len(key) == 1 else key for key in found if key]


def _parts(combination: str, names: Mapping[str, str], characters: str) -> list[str]:
    """Names that a combination is made of: separated by "+", or by blanks or hyphens where that is no name itself."""
    whole = combination if combination in characters and combination else combination.strip()
    if whole in characters or canonical(whole) in names:
        return [whole] if whole else []
    if whole.endswith("++"):
        return [*whole[:-2].split("+"), "+"]
    if "+" in whole:
        return [part.strip() for part in whole.split("+")]
    return re.split(r"[\s-]+", whole)


def canonical(name: str) -> str:
    """A key's name in the table, whatever its case and spelling."""
    squashed = _squashed(name)
    return ALIASES.get(squashed, squashed)


def _squashed(name: str) -> str:
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", name.casefold())


def _listed(names: Mapping[str, str], characters: str) -> str:
    """`names` for people: f1, f2 and so on in one word."""
    series: dict[str, list[int]] = {}
    for name in names:
        if (match := re.fullmatch(r"([a-z]+)(\d+)", name)) is not None:
            series.setdefault(match[1], []).append(int(match[2]))
    plain = [name for name in names if len(name) > 1 and name not in ALIASES and not re.fullmatch(r"[a-z]+\d+", name)]
    ranges = [f"{name}{min(numbers)} to {name}{max(numbers)}" for name, numbers in series.items()]
    single = ["characters"] if characters or any(len(name) == 1 for name in names) else []
    return ", ".join([*plain, *ranges, *single])
