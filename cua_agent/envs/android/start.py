"""How a real phone gets ready for an episode: woken, brought home, and what the task is about set to a value that the
seed draws, so that the goal may hold already. The commands are those of Android 13.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.pocket.state import BATTERY_SAVER, TIMEOUTS, TOGGLES, PhoneState, make_state
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
from cua_agent.tasks import Probe, Validator

ANDROID_FAMILIES = ("battery", "brightness", "timeout", "toggle")
"""Families of `pocket`'s tasks whose start a real phone can be put into."""

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


@dataclass(frozen=True)
class Start:
    """Shell commands that bring a phone to the start of an episode, and the settings that must read so afterwards."""

    commands: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Start) -> Start:
        return Start(self.commands + other.commands, {**self.settings, **other.settings})


class NoStartKnown(ValueError):  # noqa: N818 (what this module knows, not a fault)
    """Nothing is known about how a phone gets ready for such a goal."""


async def get_ready(start: Start, run: Callable[[str], Awaitable[object]], probe: Probe) -> None:
    """Put a phone into the state `start` by the shell command that `run` runs, and see by `probe` that it is in it.

    Raises `EnvironmentFailure`.
    """
    await run("; ".join((*start.commands, *_HOME)))
    deadline = time.monotonic() + _SETTLE_S
    while wrong := await _differences(probe, start.settings):
        if time.monotonic() > deadline:
            raise EnvironmentFailure(f"the phone did not get ready: {'; '.join(wrong)}")
        await asyncio.sleep(_POLL_S)


async def _differences(probe: Probe, wanted: Mapping[str, str]) -> list[str]:
    """What is not as it should be: radios and modes take a moment to change."""
    present = {key: (await probe(get_command(key))).strip() for key in wanted}
    return [f"{key} is {present[key]}, not {value}" for key, value in wanted.items() if present[key] != value]


def android_start(goal: Validator, seed: int) -> Start:
    """How a phone gets ready for `goal`. Raises `NoStartKnown`."""
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
    raise NoStartKnown(f"no way is known to prepare a real phone for {type(goal).__name__}")


def _switches(keys: list[str], drawn: PhoneState) -> Start:
    """Aeroplane mode first, because it moves others; where it is the task, the radios are off so that it cannot."""
    state = {_AIRPLANE: False} | {key: drawn.toggles[_NAMES[key]] for key in keys}
    if _AIRPLANE in keys:
        state = {_AIRPLANE: state[_AIRPLANE], "global wifi_on": False, "global bluetooth_on": False} | state
    commands = tuple(_SWITCH_COMMANDS[key][on] for key, on in state.items())
    return Start(commands, {key: str(int(on)) for key, on in state.items()})


def _put(key: str, value: str) -> Start:
    return Start((f"settings put {key} {value}",), {key: value})
