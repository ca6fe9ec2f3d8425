"""Whose weights a server holds: the directory that they were exported to is locked as long as its run lives.

Runs may share a server, so nothing on it is touched unless the run that put it there is provably dead.
"""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import Unavailable

RELEASE_COMMAND = "python -m cua_agent.inference.vllm release"
LOCK = "owner.lock"
SERVERS = "servers.json"
"""The servers that may have loaded what is in a directory."""
RELEASED = "released"
"""Tag of full weights that no run needs any more."""
_READABLE = 0o755
_LONGEST_NAME = 80


class WeightsDirectory:
    """A new directory for what one engine exports, readable by its `servers`; `close` deletes it.

    Its name, which is the run's with a suffix that makes it unique, begins the name of every adapter exported to it.
    """

    def __init__(self, parent: Path | None, run: str, servers: Collection[str] = ()) -> None:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{run[:_LONGEST_NAME]}-", dir=parent))
        self.path.chmod(_READABLE)
        self._lock = (self.path / LOCK).open("w", encoding="utf-8")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the kernel lets go of it however the process ends
        self._lock.write(platform.node())
        self._lock.flush()
        (self.path / SERVERS).write_text(json.dumps(sorted(servers)), encoding="utf-8")

    def of_dead_runs(self, servers: Collection[str]) -> list[Path]:
        """What dead runs left beside this directory and no other than `servers` can have loaded."""
        beside = [lock.parent for lock in self.path.parent.glob(f"*/{LOCK}")]
        return [each for each in beside if _servers_of(each) <= set(servers) and is_dead(each / SERVERS)]

    def close(self) -> None:
        """Delete the directory and everything in it; safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def is_dead(export: Path) -> bool:
    """Whether the run that exported weights to `export` is provably dead: it ran on this machine, and nobody holds its
    lock. False for whatever cannot be known from here: another machine's run, or a directory that is gone."""
    try:
        with (export.parent / LOCK).open(encoding="utf-8") as lock:
            if lock.read() != platform.node():
                return False
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (OSError, ValueError):
        return False
    return True


def _servers_of(directory: Path) -> set[str]:
    """Who may have loaded what is in `directory`; a server without a name where that is not known."""
    try:
        return set(json.loads((directory / SERVERS).read_text(encoding="utf-8"))) or {""}
    except (OSError, ValueError, TypeError):
        return {""}


@dataclass(frozen=True)
class Loaded:
    """What a server holds for a run: an adapter, or its full weights; `export` is the directory it was loaded from."""

    name: str
    export: Path

    @property
    def run(self) -> str:
        """The name that the run's engine gave everything it published."""
        return self.export.parent.name


@dataclass(frozen=True)
class Holdings:
    """Everything that runs of this library, or anybody, have loaded onto one server; `tag` is its full weights'."""

    base_name: str
    adapters: tuple[Loaded, ...]
    tag: str

    @property
    def full_weights(self) -> Loaded | None:
        """The full weights, when a run of this library put them there."""
        export = Path(self.tag)
        return Loaded(export.name, export) if export.is_absolute() else None


def read_holdings(client: ControlClient) -> Holdings:
    """Ask a server what it holds. Raises `Unavailable` and `Refused`."""
    models, info = client.call(wire.Call("GET", wire.MODELS)), client.call(wire.Call("GET", wire.WEIGHT_INFO))
    try:
        listed: list[dict[str, Any]] = models["data"]
        adapters = [Loaded(model["id"], Path(model.get("root") or "")) for model in listed if model.get("parent")]
        (base_name, *_) = [str(model["id"]) for model in listed if not model.get("parent")]
        return Holdings(base_name, tuple(adapters), str(info["weight_version"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"{client.url} does not say what it holds: {type(error).__name__} {error}") from error


def release(client: ControlClient, run: str) -> list[str]:
    """Take everything that was published under `run` from a server; the names of what it was."""
    holdings = read_holdings(client)
    released = [adapter.name for adapter in holdings.adapters if adapter.run == run]
    for name in released:
        client.call(wire.unload_adapter(name))
    if holdings.full_weights is not None and holdings.full_weights.run == run:
        client.call(wire.tag_weights(RELEASED))
        released.append(holdings.full_weights.name)
    return released
