"""Which phone an episode plays on: one episode a phone, among all processes of this machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cua_agent.envs.android.phone import AdbServer
from cua_agent.envs.base import EnvironmentFailure

_POLL_S = 0.5


async def lease_phone(server: AdbServer, serials: Sequence[str], wait_s: float) -> tuple[str, Callable[[], None]]:
    """The serial of a phone that is ready and free, and what gives it back; `serials` to choose from, empty for all.

    Waits up to `wait_s` while all are taken. Raises `EnvironmentFailure`, also when none is ready.
    """
    deadline = time.monotonic() + wait_s
    while True:
        states = await asyncio.to_thread(server.states)
        ready = ready_ones(states, serials)
        for serial in random.sample(ready, len(ready)):
            if (give_back := _lock(server, serial)) is not None:
                return serial, give_back
        if time.monotonic() > deadline:
            raise EnvironmentFailure(f"no phone became free within {wait_s:g} s (env.args.wait_s): {', '.join(ready)}")
        await asyncio.sleep(_POLL_S)


def ready_ones(states: dict[str, str], serials: Sequence[str]) -> list[str]:
    """The phones among `serials` (empty: all) that can be used. Raises `EnvironmentFailure` when there is none."""
    wanted = serials or list(states)
    ready = [serial for serial in wanted if states.get(serial) == "device"]
    if not ready:
        raise EnvironmentFailure(f"no phone is ready: {why_not(states, wanted) or 'none is connected'}")
    return ready


def why_not(states: dict[str, str], wanted: Sequence[str]) -> str:
    """What is the matter with those of `wanted` that cannot be used; empty when nothing is."""
    remedies = {"unauthorized": " (allow USB debugging on its screen)", "offline": " (connect it again)"}
    return ", ".join(
        f"{serial} is {state}{remedies.get(state, '')}"
        for serial in wanted
        if (state := states.get(serial, "not connected")) != "device"
    )


def _lock(server: AdbServer, serial: str) -> Callable[[], None] | None:
    """What unlocks the phone, or None when somebody else has it. The lock ends with the process that holds it."""
    name = re.sub(r"[^\w.-]", "_", f"{server.host}-{server.port}-{serial}")
    path = Path(tempfile.gettempdir(), f"cua-phone-{os.getuid()}-{name}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return lambda: os.close(file)
