"""The door to worlds: by the name of one that is built in or comes with a package, or as `package.module:factory`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cua_agent.by_name import REFERENCE, load
from cua_agent.envs.android.world import AndroidPhones
from cua_agent.envs.browsergym.world import BrowserGymWorld
from cua_agent.envs.gbox.world import GBoxWorld
from cua_agent.envs.guard import GuardedFactory
from cua_agent.envs.gymnasium.world import GymnasiumWorld
from cua_agent.envs.miniwob.world import MiniWobWorld
from cua_agent.envs.mobilegym.world import MobileGymWorld
from cua_agent.envs.openenv.world import OpenEnvWorld
from cua_agent.envs.pocket.world import PocketWorld
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.envs.world import Mixture, World
from cua_agent.options import STRICT, ConfigError, build, shown
from cua_agent.tasks import register_tasks

GROUP = "cua_grpo.environments"
"""Entry points of this group name the worlds of installed packages."""
OPTIONS = "env.args"
"""Where a world's options stand in a configuration."""
BUILT_IN: Mapping[str, Callable[..., World]] = {
    "pocket": PocketWorld,
    "miniwob": MiniWobWorld,
    "gbox": GBoxWorld,
    "gymnasium": GymnasiumWorld,
    "android": AndroidPhones,
    "openenv": OpenEnvWorld,
    "mobilegym": MobileGymWorld,
    "browsergym": BrowserGymWorld,
}

MIX = "mix"
_MIX_FACTORY = "cua_agent.envs.mix:MixWorld"  # a world made of others stands above this door

for _name, _world in BUILT_IN.items():
    register_tasks(_name, _world())


def world_names() -> list[str]:
    """The worlds that have a name of their own."""
    return sorted({*BUILT_IN, MIX, *_installed()})


def names_a_world(text: str) -> bool:
    """Whether `text` is the name of a world, or reads like `package.module:factory`."""
    return text in (*BUILT_IN, MIX) or REFERENCE.fullmatch(text) is not None or text in _installed()


def make_world(name: str, args: Mapping[str, Any], section: str = OPTIONS) -> World:
    """The world `name` with the options `args` (plain data); those that are absent have their defaults.

    Raises `ConfigError`, one line that names `env.name` or the option, which a user finds in `section`.
    """
    return _make(name, args, section)[0]


@asynccontextmanager
async def open_world(world: World, timeout_s: float) -> AsyncIterator[EnvironmentFactory]:
    """What starts the environments of `world`, each guarded by `timeout_s`. Raises `WorldUnavailable`."""
    if isinstance(world, Mixture):
        async with world.open_within(timeout_s) as factory:
            yield factory
        return
    async with world.open() as factory:
        own_limits = getattr(factory, "bounds_starts", False)
        yield GuardedFactory(factory, timeout_s, None if own_limits else timeout_s)


def options_of(name: str) -> type:
    """The pydantic dataclass of a world's options. Raises `ConfigError`."""
    return _find(name)[1]


def all_options(name: str, args: Mapping[str, Any], section: str = OPTIONS) -> dict[str, Any]:
    """`args` checked, with the defaults of those that are absent; plain data. Raises `ConfigError`."""
    options = _make(name, args, section)[1]
    plain: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return plain


def _make(name: str, args: Mapping[str, Any], section: str) -> tuple[World, Any]:
    """The world, and its options as an instance of their dataclass."""
    factory, options = _find(name)
    made: Any = build(options, args, section)
    world = made if isinstance(made, World) else factory(**_fields(made))
    if not isinstance(world, World):
        raise ConfigError(f"env.name={shown(name, 80)}: makes no world but {type(world).__name__}")
    return world, made


def _find(name: str) -> tuple[Callable[..., Any], type]:
    """What makes the world, and the dataclass of its options."""
    if name in BUILT_IN:
        factory: Any = BUILT_IN[name]
    elif name == MIX:
        factory = load(_MIX_FACTORY, "env.name")
    elif ":" in name:
        factory = load(name, "env.name")
    elif name in _installed():
        factory = load(_installed()[name].value, f"env.name={name}, entry point")
    else:
        allowed = ", ".join(world_names())
        raise ConfigError(f"env.name={shown(name, 80)}: no such world; allowed: {allowed}, or package.module:factory")
    return factory, _options(name, factory)


@cache
def _options(name: str, factory: Callable[..., Any]) -> type:
    try:
        if not dataclasses.is_dataclass(factory):
            return _dataclass_of(factory)
        missing = [method for method in _METHODS if not callable(getattr(factory, method, None))]
        if missing:
            raise ConfigError(f"env.name={shown(name, 80)}: no world, it lacks {', '.join(missing)}")
        has_fields = "__pydantic_fields__" in vars(factory)
        kind: type = factory if has_fields else pydantic_dataclass(factory, config=STRICT)  # type: ignore[assignment]
        return kind
    except ConfigError:
        raise
    except Exception as error:  # an annotation that pydantic has no rules for, a signature that is none
        raise ConfigError(
            f"env.name={shown(name, 80)}: its options cannot be read: {shown(str(error), 160)}; a world is a frozen "
            f"pydantic dataclass with {', '.join(_METHODS)}"
        ) from error


_METHODS = ("check", "open", "training_tasks", "eval_tasks")


def _dataclass_of(function: Callable[..., Any]) -> type:
    """A dataclass whose fields are the parameters of a function that makes a world."""
    hints, fields = typing.get_type_hints(function, include_extras=True), []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"parameter {parameter} has no name")
        if parameter.name not in hints:
            raise TypeError(f"parameter {parameter.name} has no type")
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        fields.append((parameter.name, hints[parameter.name], dataclasses.field(default=default)))
    options = dataclasses.make_dataclass(function.__name__, fields, frozen=True, kw_only=True)
    options.__doc__ = function.__doc__
    made: type = pydantic_dataclass(options, config=STRICT, frozen=True)
    return made


def _fields(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
