"""The phone's emulated shell: answers the Android commands that the validators use, from the state."""

from __future__ import annotations

from cua_agent.envs.pocket.state import BATTERY_SAVER, PACKAGES, TIMEOUTS, PhoneState

_ACTIVITIES = {
    "home": "com.google.android.apps.nexuslauncher/.NexusLauncherActivity",
    "Display": "com.android.settings/.DisplaySettings",
    "Screen timeout": "com.android.settings/.ScreenTimeoutSettings",
    "Battery": "com.android.settings/.fuelgauge.PowerUsageSummary",
    "About phone": "com.android.settings/.MyDeviceInfo",
    "Contact": "com.android.contacts/.quickcontact.QuickContactActivity",
}
TOGGLE_KEYS = {
    "global wifi_on": "Wi-Fi",
    "global bluetooth_on": "Bluetooth",
    "global airplane_mode_on": "Airplane mode",
    "global zen_mode": "Do not disturb",
    "global low_power": BATTERY_SAVER,
}
_MAX_BRIGHTNESS = 255  # Android's scale


def run_command(state: PhoneState, command: str) -> str:
    """Output of a shell command; an unknown one answers like Android's shell."""
    words = " ".join(command.split())
    if words.startswith("settings get "):
        return _setting(state, words.removeprefix("settings get "))
    answer = _COMMANDS.get(words)
    if answer is None:
        return f"/system/bin/sh: {words.split(' ')[0][:40]}: inaccessible or not found"
    return answer(state)


def _setting(state: PhoneState, key: str) -> str:
    if key in TOGGLE_KEYS:
        return str(int(state.toggles[TOGGLE_KEYS[key]]))
    if key == "system screen_brightness":
        return str(round(state.brightness * _MAX_BRIGHTNESS / 100))
    if key == "system screen_brightness_mode":
        return "0"  # never automatic
    if key == "system screen_off_timeout":
        return str(TIMEOUTS[state.timeout])
    return "null"


def front_activity(state: PhoneState) -> str:
    """The package and class of what is in front, as "package/class"."""
    return _ACTIVITIES.get(state.screen) or f"{PACKAGES[state.screen]}/.Main"


def _focus(state: PhoneState) -> str:
    return f"  mCurrentFocus=Window{{3f1c2a u0 {front_activity(state)}}}"


def _battery(state: PhoneState) -> str:
    return f"  level: {state.battery}"


def _notifications(state: PhoneState) -> str:
    return f"  pkg={PACKAGES[state.notification]}" if state.notification else ""


def _intent(state: PhoneState) -> str:
    """Data of the top activity's intent: which contact or which search it shows."""
    if state.screen == "Contact":
        return f"  dat=content://com.android.contacts/contacts/{state.contact}"
    if state.screen == "Browser" and state.query:
        return f"  dat=https://search/?q={state.query}"
    return ""


def _page_title(state: PhoneState) -> str:
    return f"  title=Word of the day: {state.page_word}"


def _alarms(state: PhoneState) -> str:
    rows = []
    for index, (time, on) in enumerate(sorted(state.alarms.items())):
        hour, minutes = time.split(":")
        rows.append(f"Row: {index} hour={hour}, minutes={int(minutes)}, enabled={int(on)}")
    return "\n".join(rows)


def _contacts(state: PhoneState) -> str:
    rows = enumerate(sorted(state.contacts))
    return "\n".join(f"Row: {i} display_name={name}, starred={int(name == state.starred)}" for i, name in rows)


_COMMANDS = {
    "dumpsys window | grep mCurrentFocus": _focus,
    "dumpsys battery | grep level": _battery,
    "dumpsys notification | grep pkg=": _notifications,
    "dumpsys activity top | grep dat=": _intent,
    "dumpsys activity top | grep title=": _page_title,
    "content query --uri content://com.android.deskclock/alarms --projection hour:minutes:enabled": _alarms,
    "content query --uri content://com.android.contacts/contacts --projection display_name:starred": _contacts,
}
