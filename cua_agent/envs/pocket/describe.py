"""A screen in words: what a person would read off it."""

from __future__ import annotations

from collections.abc import Iterator

from cua_agent.envs.pocket.screens import elements
from cua_agent.envs.pocket.state import BATTERY_SAVER, TOGGLES, PhoneState


def describe_screen(state: PhoneState) -> str:
    """The screen's name and the state of everything visible on it, top to bottom; no coordinates.

    Example: ``Settings: Wi-Fi on, Display, Bluetooth off, Battery, Airplane mode on. low``
    """
    if state.dialog:
        return f"{state.dialog}: {elements(state)[0].name}"
    battery = "low" if state.battery < 50 else "high"
    return f"{state.screen}: {', '.join(_facts(state))}. {battery}"


def _facts(state: PhoneState) -> Iterator[str]:
    on_off = {True: "on", False: "off"}
    for element in elements(state)[2:]:  # without the navigation bar
        name = element.name
        if name in (*TOGGLES, BATTERY_SAVER):
            yield f"{name} {on_off[state.toggles[name]]}"
        elif state.screen == "Clock":
            yield f"{name} {on_off[state.alarms[name]]}"
        elif name == state.starred and state.screen == "Contacts":
            yield f"{name} star"
        elif name == state.timeout:
            yield f"{name} selected"
        elif name == state.notification:
            yield f"{name} notification"
        elif name == "Brightness":
            yield f"{name} {state.brightness}%"
        else:
            yield name
    if state.screen == "Browser":
        yield state.query or state.page_word
    elif state.screen == "Contact":
        yield state.contact
    elif state.screen == "Battery":
        yield f"{state.battery}%"
