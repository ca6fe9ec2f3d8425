"""The Android commands that get a phone ready for an episode: they change what a person would change in Settings.

Only what the phone has is emulated: the switches, brightness, screen timeout, battery level, Home and Back. Aeroplane
mode does not turn the radios off here, as it does on a real phone.
"""

from __future__ import annotations

from cua_agent.actions import Action, Button, PressButton, PressKey
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.screens import go_home
from cua_agent.envs.pocket.shell import TOGGLE_KEYS, front_activity
from cua_agent.envs.pocket.state import BATTERY_SAVER, TIMEOUTS, PhoneState

_RADIOS = {"wifi": "Wi-Fi", "bluetooth": "Bluetooth"}
_KEY_EVENTS: dict[str, Action] = {
    "KEYCODE_HOME": PressButton(Button.HOME),
    "KEYCODE_BACK": PressButton(Button.BACK),
    "KEYCODE_ENTER": PressKey("enter"),
    "KEYCODE_DEL": PressKey("backspace"),
}


class BadArgument(ValueError):  # noqa: N818 (the shell's own words)
    """A command that is known, with an argument that is not; the message says which."""


def change(state: PhoneState, words: list[str]) -> bool:
    """Carry out a command that changes the phone; False when it is none of those. Raises `BadArgument`."""
    match words:
        case ["svc", "wifi" | "bluetooth" as radio, "enable" | "disable" as verb]:
            state.toggles[_RADIOS[radio]] = verb == "enable"
        case ["cmd", "connectivity", "airplane-mode", "enable" | "disable" as verb]:
            state.toggles["Airplane mode"] = verb == "enable"
        case ["cmd", "notification", "set_dnd", mode]:
            state.toggles["Do not disturb"] = mode != "off"
        case ["cmd", "power", "set-mode", "0" | "1" as mode]:
            state.toggles[BATTERY_SAVER] = mode == "1"
        case ["settings", "put", namespace, key, value]:
            _put(state, f"{namespace} {key}", value)
        case ["dumpsys", "battery", "set", "level", level]:
            state.battery = _whole(level, 100)
        case ["input", "keyevent", key] if key in _KEY_EVENTS:
            apply_action(state, _KEY_EVENTS[key])
        case ["am", "force-stop", package]:
            if front_activity(state).startswith(f"{package}/"):
                go_home(state)
        case (
            ["dumpsys", "battery", "unplug"]
            | ["input", "keyevent", "KEYCODE_WAKEUP"]
            | ["wm", "dismiss-keyguard"]
            | ["cmd", "statusbar", "collapse"]
        ):
            pass  # there is no plug, no lock and no drawer, and the screen is never off
        case _:
            return False
    return True


def _put(state: PhoneState, key: str, value: str) -> None:
    if key in TOGGLE_KEYS:
        state.toggles[TOGGLE_KEYS[key]] = _whole(value, 1) == 1
    elif key == "system screen_brightness":
        state.brightness = round(_whole(value, 255) * 100 / 255)
    elif key == "system screen_off_timeout":
        names = {str(milliseconds): name for name, milliseconds in TIMEOUTS.items()}
        if value not in names:
            raise BadArgument(f"{key}: {value[:20]!r} is not one of {', '.join(names)}")
        state.timeout = names[value]
    elif (key, value) != ("system screen_brightness_mode", "0"):  # brightness is never automatic here
        raise BadArgument(f"{key[:60]!r} cannot be put to {value[:20]!r} on this phone")


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        raise BadArgument(f"{text[:20]!r} is not a whole number from 0 to {most}")
    return int(text)
