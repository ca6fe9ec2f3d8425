"""The emulated Android commands that get a phone ready: what they change, the shell and the screen show."""

import asyncio

import pytest
from local_gbox_rig import DISPLAY, HOME

from cua_agent.envs.local_gbox import shell
from cua_agent.envs.local_gbox.phone import Phone


def run(phone: Phone, command: str) -> shell.CommandResult:
    return asyncio.run(shell.run(phone, command, 1.0))


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("svc wifi enable", "global wifi_on", "1"),
        ("svc wifi disable", "global wifi_on", "0"),
        ("svc bluetooth enable", "global bluetooth_on", "1"),
        ("cmd connectivity airplane-mode disable", "global airplane_mode_on", "0"),
        ("cmd notification set_dnd priority", "global zen_mode", "1"),
        ("cmd notification set_dnd off", "global zen_mode", "0"),
        ("dumpsys battery unplug; cmd power set-mode 1", "global low_power", "1"),
        ("settings put global wifi_on 1", "global wifi_on", "1"),
        (
            "settings put system screen_brightness_mode 0; settings put system screen_brightness 64",
            "system screen_brightness",
            "64",
        ),
        ("settings put system screen_brightness_mode 0", "system screen_brightness_mode", "0"),
        ("settings put system screen_off_timeout 300000", "system screen_off_timeout", "300000"),
    ],
)
def test_changes(command: str, key: str, value: str) -> None:
    phone = Phone(HOME, "fixed", 1)
    for _ in range(2):  # to what holds already as well
        assert run(phone, command) == shell.CommandResult()
        assert run(phone, f"settings get {key}").stdout == f"{value}\n"


def test_battery_level() -> None:
    phone = Phone(HOME, "fixed", 1)
    assert run(phone, "dumpsys battery set level 42;dumpsys battery | grep level").stdout == "  level: 42\n"


def test_home_and_back() -> None:
    phone = Phone(DISPLAY, "fixed", 1)
    focus = "dumpsys window | grep mCurrentFocus"
    assert "DisplaySettings" in run(phone, focus).stdout
    assert "settings/.Main" in run(phone, f"input keyevent KEYCODE_BACK; {focus}").stdout
    assert run(phone, "am force-stop com.android.chrome").exit_code == 0
    assert "settings/.Main" in run(phone, focus).stdout
    assert "nexuslauncher" in run(phone, f"am force-stop com.android.settings; {focus}").stdout
    phone.reset(DISPLAY)
    ready = "input keyevent KEYCODE_WAKEUP; wm dismiss-keyguard; cmd statusbar collapse; input keyevent KEYCODE_HOME"
    assert "nexuslauncher" in run(phone, f"{ready}; {focus}").stdout


@pytest.mark.parametrize(
    ("command", "error", "code"),
    [
        ("settings put global wifi_on 2", "'2' is not a whole number from 0 to 1", 1),
        ("settings put system screen_brightness 256", "'256' is not a whole number from 0 to 255", 1),
        ("settings put system screen_off_timeout 7", "'7' is not one of 15000, 30000", 1),
        ("settings put secure location_mode 3", "'secure location_mode' cannot be put to '3' on this phone", 1),
        ("dumpsys battery set level full", "'full' is not a whole number from 0 to 100", 1),
        ("svc nfc enable", "/system/bin/sh: svc: inaccessible or not found", 127),
        ("input keyevent KEYCODE_CAMERA", "/system/bin/sh: input: inaccessible or not found", 127),
    ],
)
def test_refused(command: str, error: str, code: int) -> None:
    phone = Phone(HOME, "fixed", 1)
    before = phone.screenshot().tobytes()
    done = run(phone, command)
    assert error in done.stderr and (done.stdout, done.exit_code) == ("", code)
    assert phone.screenshot().tobytes() == before


def test_the_last_command_decides_the_exit_code() -> None:
    phone = Phone(HOME, "fixed", 1)
    both = run(phone, "nonsense; settings get global wifi_on")
    assert (both.exit_code, both.stdout) == (0, "0\n") and "nonsense" in both.stderr
    assert run(phone, "settings get global wifi_on; nonsense").exit_code == 127
