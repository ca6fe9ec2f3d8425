"""``python -m trainers.config.from_env old.env > conf/experiment/mine.yaml``: the old trainer's `.env` as a preset.

The preset holds every key that the old trainer knew, also where the `.env` left it at its default, so that the run
does what the old one did. What cannot be converted is listed in the preset's comments and on standard error.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cua_agent.secrets import masked_output
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import choices
from trainers.config.masking import mask_secrets
from trainers.config.old_variables import FIXED, OBSOLETE, PRESETS, REMARKS, STAYS, VARIABLES, Variable
from trainers.config.saved import nested
from trainers.config.validation import build, fields_of, shown

DONE, BAD_CONFIGURATION = 0, 2
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^{}$]*))?\}|\$([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Setting:
    """A key of the preset; `origin` is the comment at the end of its line."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True)
class Conversion:
    """A converted `.env`; `notes` are lines about what was not converted or now means more."""

    settings: list[Setting]
    notes: list[str]


def read_env(text: str) -> tuple[dict[str, str], list[str]]:
    """Variables of a `.env` (comments, quotes and `export` allowed; of several assignments the last counts), and notes
    about lines that are none."""
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    notes: list[str] = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):  # also the second half of a key
            notes.append(f"line {binding.original.line}: not NAME=value")
        elif binding.key is not None:
            if binding.key in values:
                notes.append(f"{binding.key}: set more than once; the last value counts")
            values[binding.key] = binding.value or ""
    return values, notes


def convert(values: Mapping[str, str]) -> Conversion:
    """The keys of a run that does what the old trainer did with `values`; an empty value is an unset variable.

    Raises `ConfigError` naming the variable, its value and what is allowed.
    """
    given = {name: value for name, value in values.items() if value.strip()}
    settings: dict[str, Setting] = {}
    notes: list[str] = []
    for variable in VARIABLES:
        name, key = variable.name, variable.key
        if name not in given:
            if variable.default is not None and key not in settings:
                settings[key] = Setting(key, _value(variable, variable.default, {}), f"{name}'s default")
        elif key in settings and settings[key].origin in given:
            notes.append(f"{name}: not converted; {settings[key].origin} sets {key}")
        else:
            settings[key] = Setting(key, _value(variable, given[name], given), name)
            if name in REMARKS:
                notes.append(f"{name}: {REMARKS[name]}")
    for key, (value, why) in FIXED.items():
        settings.setdefault(key, Setting(key, value, why))
    known = {variable.name for variable in VARIABLES}
    notes += [_left_out(name) for name in values if name not in known]
    order = [key for key, _ in fields_of(TrainConfig)]
    return Conversion(sorted(settings.values(), key=lambda setting: order.index(setting.key)), notes)


def _left_out(name: str) -> str:
    if name in OBSOLETE:
        return f"{name}: not converted; {OBSOLETE[name]}"
    if name in STAYS:
        return f"{name}: leave it in the environment, where {STAYS[name]} reads it"
    name = shown(name)
    near = difflib.get_close_matches(name, [variable.name for variable in VARIABLES], n=1, cutoff=0.8)
    return f"{name}: not converted; no variable of the old trainer{f', did you mean {near[0]}?' if near else ''}"


def _value(variable: Variable, text: str, given: Mapping[str, str]) -> object:
    """The key's value, checked against its schema."""
    if variable.secret or _holds_secret(text, given):
        return f"${{oc.env:{variable.name}}}"
    text = _resolve(text.strip(), given)
    try:
        value = variable.convert(text) if variable.convert else _parse(text, dict(fields_of(TrainConfig))[variable.key])
        if not (isinstance(value, str) and "${" in value):
            build(TrainConfig, nested({variable.key: value}))
    except ConfigError as error:
        raise ConfigError(f"{variable.name}={shown(text)}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{variable.name}={shown(text)} ({variable.key}): {error}") from None
    return value


def _holds_secret(text: str, given: Mapping[str, str]) -> bool:
    return bool(mask_secrets(text, given) != text)


def _resolve(text: str, given: Mapping[str, str]) -> str:
    """`text` with `$NAME`, `${NAME}` and `${NAME:-default}` replaced: by what the `.env` says, or by a reference to the
    environment where it says nothing or the value is a secret."""

    def replacement(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        value = given.get(name)
        if value is not None and "$" not in value and mask_secrets({name: value}, given) == {name: value}:
            return value
        return f"${{oc.env:{name}}}" if default is None else f"${{oc.env:{name},'{default}'}}"

    return _REFERENCE.sub(replacement, text)


def _parse(text: str, kind: Any) -> object:
    """`text` as the old trainer read it, by the type of its key; raises `ValueError` saying what is allowed."""
    types = str(kind)
    if kind is bool:
        word = text.lower()
        if word not in (*_TRUE, *_FALSE):
            raise ValueError(f"allowed: {', '.join((*_TRUE, *_FALSE))}")
        return word in _TRUE
    for number, article in ((int, "an integer"), (float, "a number")):
        if kind is number or types.startswith(f"{number.__name__} |"):
            try:
                return number(text.partition("#")[0])
            except ValueError:
                raise ValueError(f"allowed: {article}") from None
    return text


def render(conversion: Conversion, source: str) -> str:
    """The preset's YAML."""
    lines = [
        "# @package _global_",
        f"# Made from {shown(source)} by trainers.config.from_env. A line ends with the variable it stands for; one",
        "# that the file does not set has the old trainer's default.",
        *(f"# {line}" for line in ("", "Please read:", *conversion.notes) if conversion.notes),
        "defaults:",
        *(f"  - override /{group}: {preset}" for group, preset in PRESETS.items() if preset in choices(group)),
        *_yaml(nested({setting.key: setting for setting in conversion.settings})),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _yaml(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, item in tree.items():
        if isinstance(item, Setting):
            yield f"{indent}{key}: {_scalar(item.value)}  # {item.origin}"
        else:
            yield f"{indent}{key}:"
            yield from _yaml(item, f"{indent}  ")


def _scalar(value: object) -> str:
    """`value` on one line that reads back as it is; texts are quoted."""
    if isinstance(value, str):
        from yaml import safe_dump  # type: ignore[import-untyped]

        quoted: str = safe_dump(value, default_style='"', width=sys.maxsize)
        return quoted.strip()
    return json.dumps(value)


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 done, 2 a file or value that cannot be converted."""
    parser = argparse.ArgumentParser(prog="python -m trainers.config.from_env", description=__doc__)
    parser.add_argument("env_file", help="the old trainer's .env")
    path = Path(parser.parse_args(arguments).env_file)
    try:
        values, notes = read_env(_text_of(path))
        conversion = convert(values)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    conversion = Conversion(conversion.settings, [*notes, *conversion.notes])
    print(render(conversion, path.name), end="")
    for note in conversion.notes:
        print(note, file=sys.stderr)
    return DONE


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; allowed: a file of NAME=value lines") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; allowed: a file of NAME=value lines") from None


if __name__ == "__main__":
    sys.exit(main())
