"""Text keys keep what was typed: `run_name=20240101_120000` is a name, whatever number Hydra or YAML would read."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from trainers.config.validation import ConfigError, fields_of, leaves, shown

Shape = Literal["text", "texts"]
"""A key that holds a text, or a list of texts."""

_NULL = re.compile(r"null", re.IGNORECASE)
_PLAIN_LIST = re.compile(r"\[[^\[\]{}()'\"]*\]")
_OVERRIDE = re.compile(r"(?P<how>\+{0,2})(?P<key>[\w.]+)=(?P<value>.*)", re.DOTALL)


def text_keys(kind: type) -> dict[str, Shape]:
    """The keys below the dataclass `kind` whose values are text."""
    shapes = ((name, _shape(annotation)) for name, annotation in fields_of(kind))
    return {name: shape for name, shape in shapes if shape is not None}


def as_typed(override: str, shapes: Mapping[str, Shape]) -> list[str]:
    """`override` with quotes around every text in it, such that Hydra reads what was typed; a mapping becomes an
    override for each of its keys.

    Left as they are: what is in quotes already, `null`, interpolations, and what does not parse.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return [override]
    how, key, value = match.groups()
    if value.startswith("{") and any(name.startswith(f"{key}.") for name in shapes):
        pairs = _pairs(value)
        return [override] if not pairs else [o for k, v in pairs for o in as_typed(f"{how}{key}.{k}={v}", shapes)]
    shape = shapes.get(key)
    if shape == "texts" and value.startswith("["):
        items = _items(value)
        return [override] if items is None else [f"{how}{key}=[{','.join(map(_quote, items))}]"]
    if shape is None or _NULL.fullmatch(value) or (shape == "texts" and "," in value):
        return [override]
    return [f"{how}{key}={_quote(value)}"]


def quoted(text: str) -> str:
    """Any text as the value of an override."""
    return _in_quotes(literal(text))


def literal(value: Any) -> Any:
    """`value` so that nothing in its texts refers to another key."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list) else value


def check_texts(tree: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Raise `ConfigError` when a text of the unresolved `tree` was read as a number or truth value, which a YAML file
    does with text that lacks quotes: what was typed is lost by then."""
    for key, value in leaves(tree):
        for item in value if isinstance(value, list) else [value]:
            if key in shapes and isinstance(item, int | float):
                raise ConfigError(f"{key}={shown(item)}: text is wanted, and a number was read; write it in quotes")


def _shape(annotation: Any) -> Shape | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shape(arguments[0])
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_shape, arguments)), None)
    if origin is tuple:
        return "texts" if _shape(arguments[0]) == "text" else None
    return "text" if annotation is str else None


def _quote(value: str) -> str:
    """What was typed, in quotes; it may refer to other keys."""
    is_quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    return value if is_quoted else _in_quotes(value)


def _in_quotes(text: str) -> str:
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - trailing :]}'"


def _pairs(value: str) -> list[tuple[str, str]] | None:
    """Keys and values of Hydra's `{key:value,...}` as they were typed; None when it does not parse."""
    tree = _parse(value, "dictContainer")
    if tree is None:
        return None
    return [(_text(pair.dictKey(), value), _text(pair.element(), value)) for pair in tree.dictKeyValuePair()]


def _items(value: str) -> list[str] | None:
    """The elements of Hydra's `[element,...]` as they were typed; None when it does not parse."""
    if _PLAIN_LIST.fullmatch(value):
        return [item.strip() for item in value[1:-1].split(",")] if value[1:-1].strip() else []
    tree = _parse(value, "listContainer")
    return None if tree is None else [_text(element, value) for element in tree.element()]


def _parse(value: str, rule: str) -> Any:
    from hydra.core.override_parser.overrides_visitor import HydraErrorListener
    from hydra.errors import HydraException
    from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer  # type: ignore
    from hydra.grammar.gen.OverrideParser import OverrideParser

    lexer = OverrideLexer(InputStream(value))
    lexer.mode(OverrideLexer.VALUE_MODE)
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(HydraErrorListener())
    try:
        tree = getattr(parser, rule)()
    except HydraException:
        return None
    return tree if tree.stop.stop == len(value) - 1 else None


def _text(part: Any, value: str) -> str:
    return value[part.start.start : part.stop.stop + 1]
