"""A world's options on the command line, `env.args.<name>=value`: the world, once it is known, says what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cua_agent.envs.registry import options_of
from cua_agent.error_text import first_line
from cua_agent.secrets import is_secret_name, referenced_variable
from trainers.config.former_keys import present_key
from trainers.config.overrides import key_of, parse
from trainers.config.saved import ARGS
from trainers.config.texts import as_typed, literal, text_keys
from trainers.config.validation import ConfigError, leaves

_SECTION = ARGS.rstrip(".")


def is_option(override: str) -> bool:
    """Whether an override is of a world's option, also under its former key."""
    key = key_of(override)
    return f"{key}.".startswith(ARGS) or present_key(key, "") is not None


def with_options(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration `tree` with `overrides` of its world's options. Raises `ConfigError`."""
    if not overrides:
        return dict(tree)
    world = tree["env"]["name"]
    texts = {ARGS + key: shape for key, shape in text_keys(options_of(str(world))).items()}
    args = dict(tree["env"]["args"])
    for given in overrides:
        key = key_of(given)
        override = given.replace(key, present_key(key, str(world)) or key, 1)
        for typed in as_typed(override, texts):
            parsed = parse(typed)
            path = parsed.key_or_group.split(".")[2:]
            if parsed.is_delete():
                args = _without(args, path)
            else:
                args = _with(args, path, _resolved(parsed.key_or_group, parsed.value(), tree))
    return {**tree, "env": {**tree["env"], "args": args}}


def references(args: Mapping[str, Any]) -> dict[str, str]:
    """The options that name a variable with a secret in it, by dotted key and unresolved: a configuration goes to files
    and other processes. Raises `ConfigError` for a secret that is written out: it would be seen in process lists."""
    found = {}
    for key, value in leaves(args, ARGS):
        if isinstance(value, str) and is_secret_name(key.rpartition(".")[2]):
            if referenced_variable(value) is None:
                raise ConfigError(f"{key}=***: allowed: null, or a reference such as '${{oc.env:NAME}}'")
            found[key] = value
    return found


def put_back(args: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """`args` with the references of `references` as they were."""
    both = dict(args)
    for key, value in kept.items():
        both = _with(both, key.split(".")[2:], value)
    return both


def _resolved(key: str, value: Any, tree: Mapping[str, Any]) -> Any:
    """A typed value, which may refer to other keys or to variables."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = key.rpartition(".")[2]
    given = value if isinstance(value, dict) else {name: value}
    kept = references(given)
    try:
        found = OmegaConf.to_container(OmegaConf.create({**literal(dict(tree)), "given": given}).given, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    resolved = put_back(found, kept)  # type: ignore[arg-type]
    return resolved if isinstance(value, dict) else resolved[name]


def _with(args: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of `args` with `value` at `path`; a mapping is merged."""
    if not path:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{_SECTION}={value}: a mapping is wanted; write {_SECTION}.<option>=value")
        merged = dict(args)
        for name, item in value.items():
            merged = _with(merged, [str(name)], item)
        return merged
    first, *rest = path
    below = args.get(first)
    if rest or (isinstance(value, Mapping) and isinstance(below, Mapping)):
        value = _with(below if isinstance(below, Mapping) else {}, rest, value)
    return {**args, first: value}


def _without(args: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    if not path:
        return {}
    first, *rest = path
    below = args.get(first)
    if rest and isinstance(below, Mapping):
        return {**args, first: _without(below, rest)}
    return {name: value for name, value in args.items() if name != first}
