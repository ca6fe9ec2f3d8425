"""`env.mix={pocket:0.5,miniwob:0.5}`: several worlds in one run, each as its preset has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cua_agent.envs.registry import MIX, names_a_world
from trainers.config.overrides import key_of, parse
from trainers.config.presets import Presets
from trainers.config.validation import ConfigError, shown

KEY = f"env.{MIX}"


def is_mixture(override: str) -> bool:
    """Whether an override names several worlds."""
    return key_of(override) == KEY


def mixture(override: str, presets: Presets) -> dict[str, Any]:
    """The section `env` that `env.mix={<name>: <share>, ...}` stands for. A name is a preset of `env`, or a world; in
    the place of a share there may be a mapping with `share`, `world`, `tasks` and `args`, which come before the
    preset's. Raises `ConfigError`."""
    given = parse(override).value()
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"{KEY}={shown(given)}: allowed: {{<world>: <share>, ...}}, such as {{pocket:0.5,miniwob:0.5}}"
        )
    return {"name": MIX, "tasks": [], "args": {"worlds": {str(n): _part(str(n), p, presets) for n, p in given.items()}}}


def _part(name: str, given: Any, presets: Presets) -> dict[str, Any]:
    part = dict(given) if isinstance(given, Mapping) else {"share": given}
    world = str(part.get("world", name))
    preset = presets.read("env", world) or {"name": world}
    if not names_a_world(str(preset["name"])):
        others = ", ".join(presets.choices("env"))
        raise ConfigError(
            f"{KEY}: {shown(name)}: no such env; allowed: {others}, or <name>: "
            "{world: package.module:factory, share: 0.5}"
        )
    return {
        **part,
        "world": preset["name"],
        "tasks": part.get("tasks", preset.get("tasks", [])),
        "args": {**preset.get("args", {}), **part.get("args", {})},
    }
