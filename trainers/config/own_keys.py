"""Commands that have keys of their own beside those of `train.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from trainers.config.overrides import parse_override
from trainers.config.presets import OPTION, split_options
from trainers.config.reference import value_text
from trainers.config.validation import build

T = TypeVar("T")


def read_own(kind: type[T], arguments: Sequence[str]) -> tuple[T, list[str], list[str]]:
    """A command's own keys, as an instance of the dataclass `kind`; the directories of `--config-dir`, and the other
    arguments, which are `train.py`'s. A single value stands for a list of one: `backends=legacy`. Raises
    `ConfigError`."""
    infos = kind.__pydantic_fields__  # type: ignore[attr-defined]
    lists = {name for name, info in infos.items() if isinstance(info.default, tuple)}
    directories, arguments = split_options(arguments)
    own: dict[str, Any] = {}
    others = []
    for argument in arguments:
        key, value = parse_override(argument, kind)
        if key not in infos:
            others.append(argument)
        else:
            own[key] = [value] if key in lists and not isinstance(value, list) else value
    return build(kind, own), [f"{OPTION}={directory}" for directory in directories], others


def own_key_lines(kind: type) -> list[str]:
    """A line of help for each key of `kind`."""
    infos = kind.__pydantic_fields__  # type: ignore[attr-defined]
    width = max(map(len, infos)) + 1
    return [
        f"  {name:<{width}} {info.description}{'' if info.is_required() else f' [{value_text(info.default)}]'}"
        for name, info in infos.items()
    ]
