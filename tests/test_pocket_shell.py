"""The emulated shell answers as Android does, from the phone's state."""

import pytest
from pocket_rig import phone

from cua_agent.envs.pocket import validators
from cua_agent.envs.pocket.shell import run_command
from cua_agent.envs.pocket.state import APPS, PACKAGES, PARENTS, TOGGLES

SWITCHED = {"Wi-Fi": True, "Bluetooth": False, "Airplane mode": True, "Do not disturb": False, "Battery saver": True}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("settings get global wifi_on", "1"),
        ("settings get global bluetooth_on", "0"),
        ("settings get global airplane_mode_on", "1"),
        ("settings get global zen_mode", "0"),
        ("settings get global low_power", "1"),
        ("settings get system screen_brightness", "191"),  # 75 % of 255
        ("settings get system screen_off_timeout", "120000"),
        ("settings  get   global wifi_on ", "1"),
        ("settings get global no_such_key", "null"),
        ("settings get system", "null"),
        ("dumpsys battery | grep level", "  level: 70"),
        ("dumpsys notification | grep pkg=", "  pkg=com.android.email"),
        ("dumpsys activity top | grep title=", "  title=Word of the day: river"),
        (
            "content query --uri content://com.android.deskclock/alarms --projection hour:minutes:enabled",
            "Row: 0 hour=6, minutes=0, enabled=1\nRow: 1 hour=7, minutes=30, enabled=0",
        ),
        (
            "content query --uri content://com.android.contacts/contacts --projection display_name:starred",
            "Row: 0 display_name=Anna, starred=0\nRow: 1 display_name=Ben, starred=1",
        ),
        ("rm -rf /", "/system/bin/sh: rm: inaccessible or not found"),
        ("dumpsys", "/system/bin/sh: dumpsys: inaccessible or not found"),
        ("", "/system/bin/sh: : inaccessible or not found"),
    ],
)
def test_answers(command: str, answer: str) -> None:
    state = phone(
        toggles=SWITCHED,
        brightness=75,
        timeout="2 minutes",
        battery=70,
        notification="Mail",
        page_word="river",
        alarms={"7:30": False, "6:00": True},
        contacts=("Ben", "Anna"),
        starred="Ben",
    )
    assert run_command(state, command) == answer


@pytest.mark.parametrize(("percent", "value"), [(0, "0"), (25, "64"), (50, "128"), (75, "191"), (100, "255")])
def test_brightness_has_androids_scale(percent: int, value: str) -> None:
    assert run_command(phone(brightness=percent), validators.get_command(validators.BRIGHTNESS)) == value


def test_every_screen_has_an_activity_of_its_own_and_apps_that_of_their_package() -> None:
    answers = {screen: run_command(phone(screen), validators.FOCUS) for screen in PARENTS}
    assert len(set(answers.values())) == len(PARENTS)
    assert all(answer.startswith("  mCurrentFocus=Window{") and answer.endswith("}") for answer in answers.values())
    for app in APPS:
        assert f" {PACKAGES[app]}/" in answers[app]


def test_the_intent_tells_what_is_shown() -> None:
    def intent(screen: str, **changes: str) -> str:
        return run_command(phone(screen, **changes), validators.INTENT)

    assert intent("Contact", contact="Ben") == "  dat=content://com.android.contacts/contacts/Ben"
    assert intent("Browser", query="river") == "  dat=https://search/?q=river"
    assert intent("Browser") == intent("home", query="river", contact="Ben") == ""


def test_no_notification_no_answer() -> None:
    assert run_command(phone(notification=""), validators.NOTIFICATIONS) == ""


def test_every_command_of_the_validators_is_answered() -> None:
    settings = [
        validators.get_command(key) for key in (*validators.SWITCHES, validators.BRIGHTNESS, validators.TIMEOUT)
    ]
    names = ("FOCUS", "BATTERY", "NOTIFICATIONS", "PAGE_TITLE", "ALARMS", "CONTACTS", "INTENT")
    for command in [*settings, *(getattr(validators, name) for name in names)]:
        answer = run_command(phone("Contact", contact="Anna", notification="Mail"), command)
        assert answer not in ("", "null") and "not found" not in answer
    assert [name for name, on in SWITCHED.items() if on and name in TOGGLES] == ["Wi-Fi", "Airplane mode"]
