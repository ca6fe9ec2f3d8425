"""How an episode starts on a box, by `GBoxSettings.reset`.

`pocket`: the box is a simulated phone of a local GBox, which knows the command ``pocket reset``; task and seed
determine all of the start. `android`: a real phone is set up as `cua_agent.envs.android.start` says. `fresh`: every
episode has a new box, and nothing is done to it.
"""

from __future__ import annotations

import shlex
from functools import partial

from cua_agent.envs.android.start import android_start, get_ready
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.gbox.box import Box
from cua_agent.envs.pocket.state import Layout
from cua_agent.tasks import CUATask

_NOT_FOUND = 127


async def start_on_pocket(box: Box, task: CUATask, seed: int, layout: Layout, pixel_scale: int) -> str:
    """Put a simulated phone into the start state; returns the goal in its own words."""
    command = f"pocket reset {shlex.quote(task.id)} {seed} {layout} {pixel_scale}"
    output = await box.run(command, only_reads=False)
    if output.exit_code == _NOT_FOUND:
        raise EnvironmentFailure("the box knows no pocket command: env.args.reset=pocket needs a local GBox")
    if output.exit_code:
        raise EnvironmentFailure(f"pocket reset: {' '.join(output.stderr.split())[:160]}")
    return output.stdout.strip()


async def start_on_android(box: Box, task: CUATask, seed: int) -> None:
    """Put a real phone into the start state, and see that it is in it."""

    async def probe(command: str) -> str:
        return (await box.run(command, only_reads=True)).stdout

    await get_ready(android_start(task.validation, seed), partial(box.run, only_reads=False), probe)
