"""Keys under the names that they had before, as saved configurations, presets and commands hold them: options of the
built-in worlds before `env.args`, and `scheduler` before it was a section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_WORLD: Mapping[str, Mapping[str, str]] = {
    "pocket": {"env.layout": "layout", "env.scale": "scale", "env.latency": "latency"},
    "miniwob": {"env.browser_path": "browser_path"},
    "gbox": {"env.gbox": "", "env.layout": "layout", "env.scale": "pixel_scale"},
}
"""By world: former key, and the option that it is."""
_ALL = {key for keys in _OF_WORLD.values() for key in keys}


def present_key(key: str, world: str) -> str | None:
    """The key below `env.args` that a former one of `world` is today; None for any other key. One of another world
    keeps its name, by which the world refuses it."""
    for former in _ALL:
        if key == former or key.startswith(f"{former}."):
            option = _OF_WORLD.get(world, {}).get(former, former.removeprefix("env."))
            parts = ("env.args", option, key.removeprefix(former).lstrip("."))
            return ".".join(part for part in parts if part)
    return None


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping `tree` with these keys under their present names, where they win. Options of other worlds than
    the configuration's are left out: every configuration used to hold all of them."""
    if isinstance(name := tree.get("scheduler"), str):
        tree = {**tree, "scheduler": {"name": name}}
    env = tree.get("env")
    if not isinstance(env, Mapping) or not any(f"env.{name}" in _ALL for name in env):
        return dict(tree)
    own = _OF_WORLD.get(str(env.get("name", "pocket")), {})
    args: Any = env.get("args", {})
    for former, option in own.items():
        if (name := former.removeprefix("env.")) in env:
            args = _merged(args, {option: env[name]} if option else env[name])
    kept = {name: value for name, value in env.items() if f"env.{name}" not in _ALL}
    return {**tree, "env": {**kept, "args": args}}


def _merged(former: Any, more: Any) -> Any:
    if not (isinstance(former, Mapping) and isinstance(more, Mapping)):
        return more
    return {**former, **{key: _merged(former.get(key), value) for key, value in more.items()}}
