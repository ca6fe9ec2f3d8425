"""One `key=value` of a command line; with `compose` and `texts` it alone knows Hydra."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cua_agent.error_text import first_line
from trainers.config.run import TrainConfig
from trainers.config.texts import as_typed, quoted, text_keys
from trainers.config.validation import ConfigError, shown

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_PLAIN = re.compile(r"[\w./~:@%-]+", re.ASCII)


def parse_override(override: str, kind: type = TrainConfig) -> tuple[str, Any]:
    """Key and value of one `key=value`; texts of the dataclass `kind` are as typed. Raises `ConfigError`."""
    (override, *_) = as_typed(override, text_keys(kind))
    parsed = parse(override)
    return parsed.key_or_group, parsed.value()


def key_of(override: str) -> str:
    """The key of an override, whatever Hydra is to do with it."""
    return override.partition("=")[0].lstrip("+~")


def typed_text(key: str, text: str) -> str:
    """The override that gives a key of text the value `text`, whatever is in it; plain where that can be."""
    return f"{key}={text if _PLAIN.fullmatch(text) and text.lower() != 'null' else quoted(text)}"


def parse(override: str) -> Override:
    """What Hydra reads. Raises `ConfigError`, for a sweep as well."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "=" not in override and not override.startswith("~"):
        raise ConfigError(f"{shown(override)}: not an override; write key=value, or --help for the keys")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(f"{shown(override)}: {first_line(error)}; quote special characters: key='...'") from error
    if parsed.is_sweep_override():
        key = parsed.key_or_group
        raise ConfigError(f"{shown(override)}: one value only; a list is written {key}=[a,b]")
    return parsed


def parse_sweep(override: str) -> list[str] | None:
    """An override for each value of one that has several; None for any other, also for one that does not parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return None
    if not parsed.is_discrete_sweep():
        return None
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
