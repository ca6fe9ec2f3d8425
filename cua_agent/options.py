"""Options as frozen pydantic dataclasses: strict building from plain data, with errors of one line."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_origin
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cua_agent.secrets import mask_text

STRICT = ConfigDict(extra="forbid", strict=True, coerce_numbers_to_str=True, allow_inf_nan=False)
"""No conversion of types (`true` is no integer), no unknown field, no NaN; a number is fine where a name is wanted."""

_VALUE_WIDTH = 40

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming key, value and what is allowed."""


def without_user(url: str) -> str:
    """`url`, which must not hold a user or password: it is seen in process lists and in files."""
    if "@" in urlsplit(url).netloc:
        raise ValueError("no user or password in an address; keys are read from environment variables")
    return url


Name = Annotated[str, Field(strict=False, pattern=r"^\w[\w.+=-]*$")]
PathText = Annotated[str, Field(strict=False, min_length=1)]


def build(kind: type[T], tree: Mapping[str, Any], section: str = "") -> T:
    """An instance of the dataclass `kind` from a nested mapping of JSON types, which a user knows as `section`
    ("env.args", "" for the top level). Raises `ConfigError`."""
    prefix = f"{section}." if section else ""
    check_keys(kind, tree, prefix)
    try:
        # JSON's strict mode reads lists as tuples and mappings as dataclasses, which Python's strict mode refuses.
        strict = None if getattr(kind, "__pydantic_config__", {}).get("strict") else True  # also of others' dataclasses
        return TypeAdapter(kind).validate_json(json.dumps(tree), strict=strict)
    except ValidationError as error:
        raise ConfigError(_one_line(error, kind, prefix)) from None
    except TypeError as error:  # a YAML date or the like
        raise ConfigError(f"configuration holds a value that is not plain data: {error}") from None


def check_keys(kind: type, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `ConfigError` when a key of the nested mapping `tree` is no field of the dataclass tree `kind`; its own
    keys may be dotted. `prefix` is what a user writes before them."""
    names = dict(fields_of(kind, prefix))
    for key, value in leaves(tree, prefix):
        _check_key(names, key, value, prefix.rstrip("."))


def _check_key(names: Mapping[str, Any], key: str, value: Any, top: str) -> None:
    parent = key
    while parent and not dataclasses.is_dataclass(names.get(parent)):
        if parent in names and (parent == key or get_origin(names[parent]) is dict):
            return
        parent = parent.rpartition(".")[0]
    if parent == key:
        return
    parent = parent or top
    siblings = sorted(name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent)
    near = _nearest(key, list(names))
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"keys of {parent or 'the top level'}: {', '.join(siblings)}"
    )
    raise ConfigError(f"{_assignment(shown(key, 28), value, 12)}: unknown key; {hint}")


def fields_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and annotation of every field below the dataclass `kind`, sections included."""
    for name, info in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
        yield prefix + name, info.annotation
        if dataclasses.is_dataclass(info.annotation):
            yield from fields_of(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in `tree` that is not a non-empty mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any, width: int = _VALUE_WIDTH) -> str:
    """`value` as it reads on the command line, on one line, without secrets and cut to `width` characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(mask_text(text).split())
    return text if len(text) <= width else f"{text[:width]}..."


def _children(names: Iterable[str], parent: str) -> list[str]:
    return [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent]


def _nearest(key: str, names: list[str]) -> list[str]:
    """Keys whose last part is that of `key` or close to it, those of the same section first."""
    parent, _, leaf = key.rpartition(".")
    by_leaf: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name.rpartition(".")[0] != parent):
        by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
    return [by_leaf[match][0] for match in difflib.get_close_matches(leaf, by_leaf, n=2, cutoff=0.75)]


_WORDING = {
    "Value error, ": "",
    "Input should be": "must be",
    "String should match": "must match",
    "Field required": "has too few entries",
}


def _one_line(error: ValidationError, kind: type, prefix: str) -> str:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of a section that is built in there
        return str(cause)
    key = prefix + ".".join(part for part in first["loc"] if isinstance(part, str))
    key = key.rstrip(".")
    message = first["msg"]
    if first["type"] == "dataclass_type":
        message = f"is a section; its keys: {', '.join(_children(dict(fields_of(kind, prefix)), key))}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return f"{key}: has no default and must be given"
    if first["type"] == "tuple_type" and not isinstance(first["input"], dict):
        message = f"a list is wanted; write {key}=[{shown(first['input'])}]"
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    if isinstance(first["input"], dict):  # the message names the keys that do not go together
        return f"{key}: {message}" if key else message
    return f"{_assignment(key, first['input'])}: {message}"


def _assignment(key: str, value: Any, width: int = _VALUE_WIDTH) -> str:
    """`key=value` without secrets, whether the value or the key looks like one."""
    return mask_text(f"{key}={shown(value, width)}")
