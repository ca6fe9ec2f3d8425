"""How an episode starts on a box, by `GBoxSettings.reset`.

`pocket`: the box is a simulated phone of a local GBox, which knows the command ``pocket reset``; task and seed
determine all of the start. `android`: a real phone is woken, brought home, and what the task is about is set to a value
that the seed draws, so that the goal may hold already; the commands are those of Android 13. `fresh`: every episode has
a new box, and nothing is done to it.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.gbox.box import Box
from cua_agent.envs.pocket.state import BATTERY_SAVER, TIMEOUTS, TOGGLES, Layout, PhoneState, make_state
from cua_agent.envs.pocket.validators import (
    BRIGHTNESS,
    LOW_POWER,
    SWITCHES,
    TIMEOUT,
    All,
    BatterySaverFollowsLevel,
    BrightnessIs,
    SwitchesAre,
    TimeoutMoved,
    get_command,
)
from cua_agent.tasks import CUATask, Validator

_HOME = (
    "input keyevent KEYCODE_WAKEUP",
    "wm dismiss-keyguard",
    "cmd statusbar collapse",
    "am force-stop com.android.settings",
    "input keyevent KEYCODE_BACK",  # a dialog that is in the way
    "input keyevent KEYCODE_HOME",
)
_AIRPLANE = "global airplane_mode_on"
_SWITCH_COMMANDS = {
    "global wifi_on": ("svc wifi disable", "svc wifi enable"),
    "global bluetooth_on": ("svc bluetooth disable", "svc bluetooth enable"),
    _AIRPLANE: ("cmd connectivity airplane-mode disable", "cmd connectivity airplane-mode enable"),
    "global zen_mode": ("cmd notification set_dnd off", "cmd notification set_dnd priority"),
    LOW_POWER: ("cmd power set-mode 0", "dumpsys battery unplug; cmd power set-mode 1"),
}
_NAMES = dict(zip(SWITCHES, (*TOGGLES, BATTERY_SAVER), strict=True))
_SETTLE_S = 15.0
_POLL_S = 0.5
_NOT_FOUND = 127


@dataclass(frozen=True)
class Start:
    """Shell commands that bring a phone to the start of an episode, and the settings that must read so afterwards."""

    commands: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Start) -> Start:
        return Start(self.commands + other.commands, {**self.settings, **other.settings})


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
    start = android_start(task.validation, seed)
    await box.run("; ".join((*start.commands, *_HOME)), only_reads=False)
    deadline = time.monotonic() + _SETTLE_S
    while wrong := await _differences(box, start.settings):
        if time.monotonic() > deadline:
            raise EnvironmentFailure(f"the phone did not get ready: {'; '.join(wrong)}")
        await asyncio.sleep(_POLL_S)


async def _differences(box: Box, wanted: Mapping[str, str]) -> list[str]:
    """What is not as it should be: radios and modes take a moment to change."""
    present = {key: (await box.run(get_command(key), only_reads=True)).stdout.strip() for key in wanted}
    return [f"{key} is {present[key]}, not {value}" for key, value in wanted.items() if present[key] != value]


def android_start(goal: Validator, seed: int) -> Start:
    """How a phone gets ready for `goal`. Raises `ValueError` when nothing is known about such a goal."""
    return _start_for(goal, make_state(seed, "fixed"))


def _start_for(goal: Validator, drawn: PhoneState) -> Start:
    match goal:
        case SwitchesAre(wanted):
            return _switches([key for key, _ in wanted], drawn)
        case BrightnessIs():
            level = str(round(drawn.brightness * 255 / 100))
            return _put("system screen_brightness_mode", "0") + _put(BRIGHTNESS, level)
        case TimeoutMoved():
            return _put(TIMEOUT, str(TIMEOUTS[drawn.timeout]))
        case BatterySaverFollowsLevel():
            level = f"dumpsys battery unplug; dumpsys battery set level {drawn.battery}"
            return Start((level,)) + _switches([LOW_POWER], drawn)
        case All(parts):
            return sum((_start_for(part, drawn) for part in parts), Start())
    raise ValueError(f"no way is known to prepare a real phone for {type(goal).__name__}")


def _switches(keys: list[str], drawn: PhoneState) -> Start:
    """Aeroplane mode first, because it moves others; where it is the task, the radios are off so that it cannot."""
    state = {_AIRPLANE: False} | {key: drawn.toggles[_NAMES[key]] for key in keys}
    if _AIRPLANE in keys:
        state = {_AIRPLANE: state[_AIRPLANE], "global wifi_on": False, "global bluetooth_on": False} | state
    commands = tuple(_SWITCH_COMMANDS[key][on] for key, on in state.items())
    return Start(commands, {key: str(int(on)) for key, on in state.items()})


def _put(key: str, value: str) -> Start:
    return Start((f"settings put {key} {value}",), {key: value})
