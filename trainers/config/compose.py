"""From command-line overrides to a `TrainConfig`; it and `texts` alone know Hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cua_agent.secrets import referenced_variable
from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.saved import (
    CONFIG,
    SavedRun,
    by_key,
    differences,
    nested,
    read_saved,
    run_directory_of,
    without_secrets,
)
from trainers.config.texts import as_typed, check_texts, literal, quoted, text_keys
from trainers.config.validation import AUTO, check_keys, check_resume_path, shown

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).resolve().parents[2] / "conf"
_REFERS = "env.gbox.api_key"
"""The key that is saved as the name of a variable, not as a value."""
GROUPS = ("backend", "env", "model", "loader", "inference", "experiment")

_TEXTS = {key: shape for key, shape in text_keys(TrainConfig).items() if key not in GROUPS}
_PLAIN = re.compile(r"[\w./~:@%-]+", re.ASCII)


def choices(group: str) -> list[str]:
    """The presets of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@dataclass(frozen=True)
class Composition:
    """A configuration and the presets it is made of, by config group. When it goes on with a run: `changes`, a line for
    each key that is not what that run had, and `notes` on what could not be taken over."""

    config: TrainConfig
    presets: Mapping[str, str]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Compose `conf/` with Hydra overrides and validate the result. Raises `ConfigError`."""
    return compose_run(overrides).config


def compose_run(overrides: Sequence[str]) -> Composition:
    """As `load_config`; with `resume=<path>` it starts from the configuration that the run there saved. A preset that
    is typed then changes what it would change in a new run, and the keys that are typed come last.

    Raises `ConfigError`.
    """
    expanded = [typed for override in overrides for typed in as_typed(_expand_model(override), _TEXTS)]
    parsed = [_parse(override) for override in expanded]
    for override in parsed:
        _check(override)
    typed = [Typed(override.key_or_group, text) for override, text in zip(parsed, expanded, strict=True)]
    resume = next((override.value() for override in reversed(parsed) if override.key_or_group == "resume"), None)
    directory = _saved_directory(resume)
    if directory is None:
        tree, presets = _compose_presets(typed)
        config = from_mapping(tree)
        lacking = config.resume not in (None, AUTO)
        notes = (f"resume={resume}: no {CONFIG} there; every key is the command line's",) if lacking else ()
        return Composition(config, presets, notes=notes)
    return _resumed(read_saved(directory), typed)


def _saved_directory(resume: object) -> Path | None:
    """The run directory whose configuration `resume` goes on with. Raises `ConfigError` for a path that leads
    nowhere."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(resume, str) or resume == AUTO:
        return None
    try:
        path: str = OmegaConf.create({"resume": resume}).resume  # it may refer to variables
    except OmegaConfBaseException as error:
        raise ConfigError(f"resume={shown(resume)}: {_first_line(error)}") from error
    check_resume_path(path)
    return run_directory_of(Path(path).expanduser())


class Typed(NamedTuple):
    """An override: its key or config group, and the text that Hydra is given."""

    key: str
    text: str


def _resumed(saved: SavedRun, typed: Sequence[Typed]) -> Composition:
    chosen = [each for each in typed if each.key in GROUPS]
    keys = [each for each in typed if each.key not in GROUPS]
    settings = without_secrets(saved, [each.key for each in typed])
    settings |= {"resume": None, "run_name": None, "output_dir": str(_parent(saved.directory))}
    presets = dict(saved.presets)
    if chosen:
        changed, presets = _changed_by_presets(saved, chosen)
        settings |= changed
    start = {**literal(settings), _REFERS: settings[_REFERS]}
    tree = _compose("run", nested(start), [each.text for each in keys])[0]
    config = from_mapping(tree)
    unknown = ", ".join(f"{key}={shown(value, 20)}" for key, value in saved.unknown.items())
    notes = (f"{saved.directory / CONFIG} has keys that do not exist any more, left out: {unknown}",) if unknown else ()
    return Composition(config, presets, tuple(differences(saved.settings, config)), notes)


def _changed_by_presets(saved: SavedRun, chosen: Sequence[Typed]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the `chosen` presets change in the saved settings, and the presets that these are made of then.

    Another backend brings its own defaults, but leaves what the run had set itself.
    """
    known = [Typed(group, f"{group}={name}") for group, name in saved.presets.items() if name in choices(group)]
    backends = [each for each in chosen if each.key == "backend"]
    own, _ = _compose_presets(known)
    moved, _ = _compose_presets([*known, *backends])
    new, presets = _compose_presets([*known, *chosen])
    before, between, after = by_key(own), by_key(moved), by_key(new)
    changed = {key: between[key] for key in between if between[key] != before[key] == saved.settings[key]}
    return changed | {key: after[key] for key in after if after[key] != between[key]}, presets


def _parent(directory: Path) -> Path:
    """The parent of a run directory, also of one that is called `.`."""
    return directory.parent if directory.name not in ("", "..") else directory.resolve().parent


def _compose_presets(overrides: Sequence[Typed]) -> tuple[dict[str, Any], dict[str, str]]:
    """Today's defaults, presets and keys as a tree, and the presets by config group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    tree, presets = _compose("config", asdict(TrainConfig()), [each.text for each in overrides])
    chosen = [each.text for each in overrides if each.key == "experiment"][-1:]
    name = OverridesParser.create().parse_override(chosen[0]).value() if chosen else None
    # The run carries the name of the experiment that was chosen, unless that sets a name of its own.
    named = isinstance(name, str) and tree["experiment"] == TrainConfig().experiment
    return {**tree, "experiment": name} if named else tree, presets


def _compose(name: str, schema: Mapping[str, Any], overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of `schema` and what the file `name` of `conf/` makes of it (`run`: nothing), resolved, and the presets.

    Raises `ConfigError`.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    ConfigStore.instance().store("run" if name == "run" else "schema", dict(schema))
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(name, overrides, return_hydra_config=True)
            presets = {group: composed.hydra.runtime.choices.get(group) for group in GROUPS}
            with open_dict(composed):
                del composed["hydra"]
            unresolved = cast(dict[str, Any], OmegaConf.to_container(composed))
            reference = _key_reference(unresolved)
            check_texts(unresolved, _TEXTS)
            tree = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
            tree["env"]["gbox"]["api_key"] = reference
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error
    except YAMLError as error:
        raise ConfigError(f"a file of conf/ is not YAML: {shown(str(error), 250)}") from error
    return tree, {group: name for group, name in presets.items() if isinstance(name, str)}


def parse_override(override: str, kind: type = TrainConfig) -> tuple[str, Any]:
    """Key and value of one `key=value`; texts of the dataclass `kind` are as typed. Raises `ConfigError`."""
    (override, *_) = as_typed(override, text_keys(kind))
    parsed = _parse(override)
    _refuse_sweep(parsed)
    return parsed.key_or_group, parsed.value()


def typed_text(key: str, text: str) -> str:
    """The override that gives a key of text the value `text`, whatever is in it; plain where that can be."""
    return f"{key}={text if _PLAIN.fullmatch(text) and text.lower() != 'null' else quoted(text)}"


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
    return f"model.path={value}"


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


def _key_reference(tree: Any) -> str | None:
    """What `env.gbox.api_key` refers to, unresolved: a configuration goes to files and other processes. A key that is
    written out is refused: it would be seen in process lists."""
    reference: str | None = tree["env"]["gbox"]["api_key"]
    if reference is not None and referenced_variable(str(reference)) is None:
        raise ConfigError("env.gbox.api_key=***: allowed: null, or a reference such as '${oc.env:NAME}'")
    return reference


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        key = override.key_or_group
        raise ConfigError(f"{shown(override.input_line)}: one value only; a list is written {key}=[a,b]")


def _no_such(group: str, value: str, *others: str) -> ConfigError:
    return ConfigError(f"{group}={shown(value)}: no such {group}; allowed: {', '.join([*choices(group), *others])}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
