"""A run on one machine talks to itself on the loopback address, where AReaL and torch listen on every network."""

from __future__ import annotations

import itertools
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

LOOPBACK = "127.0.0.1"
ONE_MACHINE = "CUA_ONE_MACHINE"
"""Environment variable: tells a worker that all of its run is on this machine, and the directory where they meet."""

_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
_LISTENERS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def meeting_place(run_directory: Path) -> Path:
    """Where the processes of a run on one machine find each other."""
    return (run_directory / "areal" / "groups").absolute()


def text_of_meeting_place(run_directory: Path) -> str:
    """The value of `ONE_MACHINE` in a worker's environment; AReaL takes environments apart at every equals sign."""
    return quote(str(meeting_place(run_directory)))


def given_meeting_place() -> Path | None:
    """What `ONE_MACHINE` names in this process's environment."""
    text = os.environ.get(ONE_MACHINE)
    return None if text is None else Path(unquote(text))


def stay_on_this_machine(directory: Path) -> None:
    """For this process: AReaL calls itself by the loopback address, process groups listen there, and they are made
    through files in `directory`, which all processes of the run name, instead of a server of torch's own. Before any
    process group is made; a second call counts."""
    import torch.distributed as dist
    from areal.utils import network

    for name in _LISTENERS:
        os.environ[name] = _INTERFACE
    network.gethostip = _loopback
    for name, module in list(sys.modules.items()):  # those that have imported it by name
        if name.startswith("areal.") and hasattr(module, "gethostip"):
            module.gethostip = _loopback  # type: ignore[attr-defined]
    directory.mkdir(parents=True, exist_ok=True)
    made: Any = dist.init_process_group
    original = made.args[0] if isinstance(made, partial) else made
    dist.init_process_group = partial(_init_by_files, original, directory, itertools.count())


def _loopback(*_: object, **__: object) -> str:
    return LOOPBACK


def _init_by_files(
    original: Any,
    directory: Path,
    number: itertools.count[int],
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    **options: Any,
) -> None:
    """`torch.distributed.init_process_group`. Its processes make as many groups each, in the same order."""
    from torch.distributed import FileStore  # type: ignore[attr-defined]

    world_size = int(os.environ["WORLD_SIZE"]) if world_size < 0 else world_size
    rank = int(os.environ["RANK"]) if rank < 0 else rank
    meeting = "".join(c if c.isalnum() else "-" for c in init_method or os.environ["MASTER_PORT"])
    store = store or FileStore(str(directory / f"group-{meeting}-{next(number)}"), world_size)
    if timeout is not None:
        store.set_timeout(timeout)
    original(backend, store=store, timeout=timeout, world_size=world_size, rank=rank, **options)
