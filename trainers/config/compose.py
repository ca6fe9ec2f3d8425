"""From command-line overrides to a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cua_agent.envs.registry import names_a_world, world_names
from cua_agent.error_text import first_line
from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.former_keys import renamed
from trainers.config.mixtures import is_mixture, mixture
from trainers.config.overrides import key_of, parse
from trainers.config.presets import GROUPS, Presets, presets_in, split_options
from trainers.config.saved import (
    ARGS,
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
from trainers.config.world_options import is_option, put_back, references, with_options

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).resolve().parents[1] / "conf"
"""Our presets; in a checkout a link to `conf/` at its top, so that they travel with the package."""

_TEXTS = {key: shape for key, shape in text_keys(TrainConfig).items() if key not in GROUPS}
_FOREIGN = "world_"
"""What the names of presets begin with that are made for worlds without one."""


def choices(group: str) -> list[str]:
    """The presets of a config group that there are without further directories."""
    return presets_in(CONF).choices(group)


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
    is typed then changes what it would change in a new run, and the keys that are typed come last. Presets are also
    looked for in the directories that `--config-dir=<directory>` among the overrides names.

    Raises `ConfigError`.
    """
    directories, overrides = split_options(overrides)
    presets = presets_in(CONF, directories)
    options = [override for override in overrides if is_option(override)]
    expanded = [
        typed
        for override in overrides
        if override not in options
        for typed in as_typed(_expand_world(_expand_model(override, presets), presets), _TEXTS)
    ]
    parsed = [parse(override) for override in expanded]
    for override in parsed:
        _check(override, presets)
    typed = [Typed(override.key_or_group, text) for override, text in zip(parsed, expanded, strict=True)]
    resume = next((override.value() for override in reversed(parsed) if override.key_or_group == "resume"), None)
    directory = _saved_directory(resume)
    if directory is None:
        tree, chosen = _compose_presets(typed, presets)
        config = from_mapping(with_options(tree, options))
        lacking = config.resume not in (None, AUTO)
        notes = (f"resume={resume}: no {CONFIG} there; every key is the command line's",) if lacking else ()
        return Composition(config, chosen, notes=notes)
    return _resumed(read_saved(directory), typed, options, presets)


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
        raise ConfigError(f"resume={shown(resume)}: {first_line(error)}") from error
    check_resume_path(path)
    return run_directory_of(Path(path).expanduser())


class Typed(NamedTuple):
    """An override: its key or config group, and the text that Hydra is given."""

    key: str
    text: str


def _resumed(saved: SavedRun, typed: Sequence[Typed], options: Sequence[str], presets: Presets) -> Composition:
    chosen = [each for each in typed if each.key in GROUPS]
    keys = [each for each in typed if each.key not in GROUPS]
    settings = without_secrets(saved, [*(each.key for each in typed), *map(key_of, options)])
    settings |= {"resume": None, "run_name": None, "output_dir": str(_parent(saved.directory))}
    made_of = dict(saved.presets)
    if chosen:
        changed, made_of = _changed_by_presets(saved, chosen, presets)
        if any(key == "env.name" or key.startswith(ARGS) for key in changed):  # another world has options of its own
            settings = {key: value for key, value in settings.items() if not key.startswith(ARGS)}
        settings |= changed
    kept = references(nested(settings)["env"].get("args", {}))
    start = nested({**literal(settings), **kept})
    start["env"].setdefault("args", {})
    tree = _compose("run", start, [each.text for each in keys], presets)[0]
    config = from_mapping(with_options(tree, options))
    unknown = ", ".join(f"{key}={shown(value, 20)}" for key, value in saved.unknown.items())
    notes = (f"{saved.directory / CONFIG} has keys that do not exist any more, left out: {unknown}",) if unknown else ()
    return Composition(config, made_of, tuple(differences(saved.settings, config)), notes)


def _changed_by_presets(
    saved: SavedRun, chosen: Sequence[Typed], presets: Presets
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the `chosen` presets change in the saved settings, and the presets that these are made of then.

    Another backend brings its own defaults, but leaves what the run had set itself.
    """
    known = [
        Typed(group, _expand_world(f"{group}={name}", presets))
        for group, name in saved.presets.items()
        if name in presets.choices(group) or (group == "env" and names_a_world(name))
    ]
    backends = [each for each in chosen if each.key == "backend"]
    own, _ = _compose_presets(known, presets)
    moved = _compose_presets([*known, *backends], presets)[0] if backends else own
    new, made_of = _compose_presets([*known, *chosen], presets)
    before, between, after = by_key(own), by_key(moved), by_key(new)
    changed = {key: value for key, value in between.items() if value != before.get(key) == saved.settings.get(key)}
    changed |= {key: value for key, value in after.items() if value != between.get(key)}
    if {key for key in between if key.startswith(ARGS)} - set(after):  # the world is the same, with fewer options set
        changed |= {key: value for key, value in after.items() if key.startswith((ARGS, "env.name"))}
    return changed, made_of


def _parent(directory: Path) -> Path:
    """The parent of a run directory, also of one that is called `.`."""
    return directory.parent if directory.name not in ("", "..") else directory.resolve().parent


def _compose_presets(overrides: Sequence[Typed], presets: Presets) -> tuple[dict[str, Any], dict[str, str]]:
    """Today's defaults, presets and keys as a tree, and the presets by config group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    schema = asdict(TrainConfig())
    schema["env"]["args"] = {}  # the world that is chosen fills in its own
    tree, made_of = _compose("config", schema, [each.text for each in overrides], presets)
    chosen = [each.text for each in overrides if each.key == "experiment"][-1:]
    name = OverridesParser.create().parse_override(chosen[0]).value() if chosen else None
    # The run carries the name of the experiment that was chosen, unless that sets a name of its own.
    named = isinstance(name, str) and tree["experiment"] == TrainConfig().experiment
    return {**tree, "experiment": name} if named else tree, made_of


def _compose(
    name: str, schema: Mapping[str, Any], overrides: list[str], presets: Presets
) -> tuple[dict[str, Any], dict[str, str]]:
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
        with initialize_config_dir(str(presets.folders[0]), version_base="1.3"):
            searched = [f"hydra.searchpath=[{','.join(map(quoted, presets.search_path))}]"]
            composed = compose(name, [*overrides, *searched], return_hydra_config=True)
            made_of = {group: composed.hydra.runtime.choices.get(group) for group in GROUPS}
            with open_dict(composed):
                del composed["hydra"]
            unresolved = renamed(cast(dict[str, Any], OmegaConf.to_container(composed)))
            check_texts(unresolved, _TEXTS)
            kept = references(unresolved["env"]["args"])
            resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            tree = renamed(cast(dict[str, Any], resolved))
            tree["env"]["args"] = put_back(tree["env"]["args"], kept)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    except YAMLError as error:
        raise ConfigError(f"a file of conf/ is not YAML: {shown(str(error), 250)}") from error
    if str(made_of["env"]).startswith(_FOREIGN):
        made_of["env"] = tree["env"]["name"]
    return tree, {group: name for group, name in made_of.items() if isinstance(name, str)}


def _expand_model(override: str, presets: Presets) -> str:
    """`model=<directory or hub id>` as `model.path=<it>`; anything else as it is."""
    key, _, value = override.partition("=")
    if key != "model" or value in presets.choices("model"):
        return override
    if "/" not in value and not Path(value).is_dir():
        raise _no_such(presets, "model", value, "a directory, a hub id")
    return f"model.path={value}"


def _expand_world(override: str, presets: Presets) -> str:
    """`env=<a world that has no preset>`, or `env.mix=`, as a preset that is made for it; anything else as it is."""
    from hydra.core.config_store import ConfigStore

    key, _, value = override.partition("=")
    world = value.strip("'\"")
    if is_mixture(override):
        section = mixture(override, presets)
    elif key == "env" and world not in presets.choices("env") and names_a_world(world):
        section = {"name": world, "tasks": [], "args": {}}
    else:
        return override
    preset = _FOREIGN + (value if is_mixture(override) else world).encode().hex()
    ConfigStore.instance().store(preset, section, group="env")
    return f"env={preset}"


def _check(override: Override, presets: Presets) -> None:
    """Refuse unknown presets and unknown keys before Hydra does, in words that name what is allowed."""
    key, value = override.key_or_group, override.value()
    if isinstance(value, dict) or key not in GROUPS:
        check_keys(TrainConfig, {key: value})
    elif isinstance(value, str) and value not in presets.choices(key) and not value.startswith(_FOREIGN):
        others = [*world_names(), "package.module:factory"] if key == "env" else []
        raise _no_such(presets, key, value, *others)
    elif not isinstance(value, str | list) and not override.is_delete():
        raise _no_such(presets, key, shown(value))


def _no_such(presets: Presets, group: str, value: str, *others: str) -> ConfigError:
    allowed = dict.fromkeys([*presets.choices(group), *others])
    return ConfigError(f"{group}={shown(value)}: no such {group}; allowed: {', '.join(allowed)}")
