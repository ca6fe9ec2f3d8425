"""From command-line overrides to a `TrainConfig`: the only place that knows Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.validation import check_keys, shown

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("backend", "env", "model", "loader", "inference", "experiment")


def choices(group: str) -> list[str]:
    """The presets of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Compose `conf/` with Hydra overrides and validate the result. Raises `ConfigError`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    ConfigStore.instance().store("schema", asdict(TrainConfig()))
    expanded = [_expand_model(override) for override in overrides]
    parsed = [_parse(override) for override in expanded]
    for override in parsed:
        _check(override)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", expanded)
            _check_secrets(OmegaConf.to_container(composed))
            tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error
    except YAMLError as error:
        raise ConfigError(f"a file of conf/ is not YAML: {shown(str(error), 250)}") from error
    return from_mapping(_named(cast(dict[str, object], tree), parsed))


def _named(tree: dict[str, object], overrides: Sequence[Override]) -> dict[str, object]:
    """`tree` under the name of the experiment that was chosen, unless that sets a name of its own."""
    chosen = [override.value() for override in overrides if override.key_or_group == "experiment"][-1:]
    named = chosen and isinstance(chosen[0], str) and tree["experiment"] == TrainConfig().experiment
    return {**tree, "experiment": chosen[0]} if named else tree


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of one `key=value`. Raises `ConfigError`."""
    parsed = _parse(override)
    _refuse_sweep(parsed)
    return parsed.key_or_group, parsed.value()


def quoted(text: str) -> str:
    """Any text as the value of an override."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _parse(override: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "=" not in override and not override.startswith("~"):
        raise ConfigError(f"{shown(override)}: not an override; write key=value, or --help for the keys")
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(f"{shown(override)}: {_first_line(error)}; quote special characters: key='...'") from error


def _expand_model(override: str) -> str:
    """`model=<directory or hub id>` as `model.path=<it>`; anything else as it is."""
    key, _, value = override.partition("=")
    if key != "model" or value in choices("model"):
        return override
    if "/" not in value and not Path(value).is_dir():
        raise _no_such("model", value, "a directory, a hub id")
    return f"model.path={quoted(value)}"


def _check(override: Override) -> None:
    """Refuse unknown presets, unknown keys and sweeps before Hydra does, in words that name what is allowed."""
    _refuse_sweep(override)
    key, value = override.key_or_group, override.value()
    if isinstance(value, dict) or key not in GROUPS:
        check_keys(TrainConfig, {key: value})
    elif isinstance(value, str) and value not in choices(key):
        raise _no_such(key, value)
    elif not isinstance(value, str | list) and not override.is_delete():
        raise _no_such(key, shown(value))


def _check_secrets(tree: Any) -> None:
    """Refuse a key that is written out: it would be seen in process lists and in files."""
    key = tree["env"]["gbox"]["api_key"]
    if key is not None and not str(key).startswith("${"):
        raise ConfigError("env.gbox.api_key=***: allowed: null, or a reference such as '${oc.env:NAME}'")


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        key = override.key_or_group
        raise ConfigError(f"{shown(override.input_line)}: one value only; a list is written {key}=[a,b]")


def _no_such(group: str, value: str, *others: str) -> ConfigError:
    return ConfigError(f"{group}={shown(value)}: no such {group}; allowed: {', '.join([*choices(group), *others])}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
