"""The shell of a box: pocket's emulated Android shell, commands that change the phone, and one that resets it.

``pocket reset <task id> <seed> [layout] [scale]`` puts the phone into the start state of a task and prints its goal.
The state depends on the seed alone, as in the `pocket` environment; `layout` is fixed, themed or shuffled, `scale` the
screen's size (128 x 224 pixels times 1..8); what is not given stays as it is. ``sleep <seconds>`` sleeps. The commands
of `android` change the phone as they would a real one.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass
from functools import lru_cache
from typing import cast, get_args

from cua_agent.envs.local_gbox.android import BadArgument, change
from cua_agent.envs.local_gbox.phone import MAX_PIXEL_SCALE, Phone
from cua_agent.envs.pocket.shell import run_command
from cua_agent.envs.pocket.state import Layout
from cua_agent.tasks import get_eval_tasks, get_training_tasks

USAGE = "usage: pocket reset <task id> <seed> [layout] [scale]"
TIMED_OUT, NOT_FOUND, BAD_USAGE = 124, 127, 2
_NOT_FOUND_PREFIX = "/system/bin/sh: "


@dataclass(frozen=True)
class CommandResult:
    """What a shell command printed, and how it ended."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0


class _UsageError(ValueError):
    """A `pocket` command that cannot be run; the message says why."""


async def run(phone: Phone, command: str, timeout_s: float) -> CommandResult:
    """Run a command line, also several commands joined by ";"; never raises.

    The output is that of all, the exit code that of the last. A command that takes longer than `timeout_s` ends with
    exit code 124.
    """
    results = [await _run_one(phone, part, timeout_s) for part in command.split(";")]
    return CommandResult(
        "".join(result.stdout for result in results),
        "".join(result.stderr for result in results),
        results[-1].exit_code,
    )


async def _run_one(phone: Phone, command: str, timeout_s: float) -> CommandResult:
    try:
        words = shlex.split(command)
        if words[:1] == ["pocket"]:
            return _pocket(phone, words[1:])
        if words[:1] == ["sleep"]:
            return await _sleep(words[1:], timeout_s)
        if change(phone.state, words):
            return CommandResult()
    except BadArgument as error:
        return CommandResult(stderr=f"{error}\n", exit_code=1)
    except ValueError as error:  # an open quotation
        return CommandResult(stderr=f"{_NOT_FOUND_PREFIX}{error}\n", exit_code=BAD_USAGE)
    output = run_command(phone.state, command)
    if output.startswith(_NOT_FOUND_PREFIX):
        return CommandResult(stderr=f"{output}\n", exit_code=NOT_FOUND)
    return CommandResult(stdout=f"{output}\n" if output else "")


def _pocket(phone: Phone, words: list[str]) -> CommandResult:
    try:
        return CommandResult(stdout=f"{_reset(phone, words)}\n")
    except _UsageError as error:
        return CommandResult(stderr=f"pocket: {error}\n{USAGE}\n", exit_code=BAD_USAGE)


def _reset(phone: Phone, words: list[str]) -> str:
    """Reset the phone; returns the task's goal. Raises `_UsageError`, and then nothing has changed."""
    if words[:1] != ["reset"] or not 3 <= len(words) <= 5:
        raise _UsageError("what to do is not clear")
    task_id, seed, layout, scale = [*words[1:], "", ""][:4]
    goal = _goals().get(task_id)
    if goal is None:
        raise _UsageError(f"task {task_id[:80]!r} is unknown")
    if not seed.isdecimal():
        raise _UsageError(f"seed {seed[:20]!r} is not a whole number")
    if layout and layout not in get_args(Layout):
        raise _UsageError(f"layout {layout[:20]!r} is not one of {', '.join(get_args(Layout))}")
    if scale and scale not in map(str, range(1, MAX_PIXEL_SCALE + 1)):
        raise _UsageError(f"scale {scale[:20]!r} is not 1..{MAX_PIXEL_SCALE}")
    phone.reset(int(seed), cast(Layout, layout) or None, int(scale) if scale else None)
    return goal


@lru_cache(maxsize=1)
def _goals() -> dict[str, str]:
    """The goal of every task, by id."""
    tasks = [*get_training_tasks("pocket"), *get_eval_tasks("pocket", "seeds"), *get_eval_tasks("pocket", "templates")]
    return {task.id: task.description for task in tasks}


async def _sleep(words: list[str], timeout_s: float) -> CommandResult:
    try:
        seconds = float(words[0].removesuffix("s"))
    except (IndexError, ValueError):
        return CommandResult(stderr="sleep: needs a number of seconds\n", exit_code=1)
    await asyncio.sleep(max(0.0, min(seconds, timeout_s)))
    return CommandResult(exit_code=TIMED_OUT if seconds > timeout_s else 0)
