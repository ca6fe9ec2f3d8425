"""Every validator on hand-made states: the goal reached, missed, and reached with collateral damage."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pocket_rig import phone

from cua_agent.envs.pocket.shell import run_command
from cua_agent.envs.pocket.state import PhoneState
from cua_agent.envs.pocket.validators import (
    LOW_POWER,
    AlarmIs,
    All,
    BatterySaverFollowsLevel,
    BrightnessIs,
    NotifyingAppOpened,
    PageWordSearched,
    StarredContactOpened,
    SwitchesAre,
    TimeoutMoved,
)
from cua_agent.tasks import Probe, Validator

ALL_OFF = dict.fromkeys(("Wi-Fi", "Bluetooth", "Airplane mode", "Do not disturb", "Battery saver"), False)
START = phone(
    "home",
    toggles=ALL_OFF,
    brightness=50,
    timeout="1 minute",
    battery=30,
    alarms={"7:00": False, "6:00": True},
    contacts=("Anna", "Ben"),
    starred="Ben",
    page_word="river",
    notification="Mail",
)


def on(*names: str) -> dict[str, bool]:
    return ALL_OFF | dict.fromkeys(names, True)


def probe_of(state: PhoneState) -> Probe:
    async def probe(command: str) -> str:
        return run_command(state, command)

    return probe


async def _score(validator: Validator, start: PhoneState, end: PhoneState) -> float:
    return await validator.score(probe_of(end), await validator.snapshot(probe_of(start)))


def score(validator: Validator, start: PhoneState = START, **changes: Any) -> float:
    """The score of a phone that was `start` and has changed since."""
    return asyncio.run(_score(validator, start, replace(start, **changes)))


WIFI_ON = SwitchesAre((("global wifi_on", "1"),))
WIFI_ON_BLUETOOTH_OFF = SwitchesAre((("global wifi_on", "1"), ("global bluetooth_on", "0")))
SAVER = BatterySaverFollowsLevel(50)


@pytest.mark.parametrize(
    ("validator", "changes", "expected"),
    [
        (WIFI_ON, {"toggles": on("Wi-Fi")}, 1),
        (WIFI_ON, {}, 0),
        (WIFI_ON, {"toggles": on("Wi-Fi", "Bluetooth")}, 0),  # collateral
        (WIFI_ON, {"toggles": on("Wi-Fi", "Battery saver")}, 0),
        (WIFI_ON, {"toggles": on("Bluetooth")}, 0),
        (SwitchesAre((("global wifi_on", "0"),)), {}, 1),  # holds already
        (WIFI_ON_BLUETOOTH_OFF, {"toggles": on("Wi-Fi")}, 1),
        (WIFI_ON_BLUETOOTH_OFF, {"toggles": on("Wi-Fi", "Bluetooth")}, 0),
        (WIFI_ON_BLUETOOTH_OFF, {}, 0),
        (BrightnessIs(75), {"brightness": 75}, 1),
        (BrightnessIs(75), {"brightness": 50}, 0),
        (BrightnessIs(75), {"brightness": 100}, 0),
        (TimeoutMoved(1), {"timeout": "2 minutes"}, 1),
        (TimeoutMoved(1), {}, 0),
        (TimeoutMoved(1), {"timeout": "5 minutes"}, 0),
        (TimeoutMoved(1), {"timeout": "30 seconds"}, 0),
        (TimeoutMoved(-1), {"timeout": "30 seconds"}, 1),
        (TimeoutMoved(-1), {"timeout": "2 minutes"}, 0),
        (SAVER, {"toggles": on("Battery saver")}, 1),
        (SAVER, {}, 0),
        (SAVER, {"toggles": on("Battery saver", "Wi-Fi")}, 0),
        (SAVER, {"toggles": on("Battery saver"), "battery": 90}, 1),  # the level at the start counts
        (NotifyingAppOpened(), {"screen": "Mail", "notification": ""}, 1),
        (NotifyingAppOpened(), {}, 0),
        (NotifyingAppOpened(), {"screen": "Camera"}, 0),
        (NotifyingAppOpened(), {"screen": "home", "notification": ""}, 0),  # opened and left again
        (AlarmIs(7, 0, True), {"alarms": {"7:00": True, "6:00": True}}, 1),
        (AlarmIs(7, 0, True), {}, 0),
        (AlarmIs(7, 0, True), {"alarms": {"7:00": True, "6:00": False}}, 0),  # collateral
        (AlarmIs(7, 0, False), {}, 1),
        (AlarmIs(9, 0, True), {}, 0),  # there is no such alarm
        (AlarmIs(9, 0, False), {}, 0),
        (StarredContactOpened(), {"screen": "Contact", "contact": "Ben"}, 1),
        (StarredContactOpened(), {"screen": "Contact", "contact": "Anna"}, 0),
        (StarredContactOpened(), {"screen": "Contacts", "contact": "Ben"}, 0),
        (PageWordSearched(), {"screen": "Browser", "query": "river"}, 1),
        (PageWordSearched(), {"screen": "Browser", "query": "River"}, 1),
        (PageWordSearched(), {"screen": "Browser", "query": "rivers"}, 0),
        (PageWordSearched(), {"screen": "Browser", "query": "river river"}, 0),
        (PageWordSearched(), {"screen": "Browser", "query": "x\nriver"}, 0),
        (PageWordSearched(), {"screen": "Browser", "draft": {"Address bar": "river"}}, 0),  # typed, not searched
        (PageWordSearched(), {"screen": "home", "query": "river"}, 0),
        (All((WIFI_ON, BrightnessIs(75))), {"toggles": on("Wi-Fi"), "brightness": 75}, 1),
        (All((WIFI_ON, BrightnessIs(75))), {"toggles": on("Wi-Fi")}, 0.5),
        (All((WIFI_ON, BrightnessIs(75))), {"brightness": 75}, 0.5),
    ],
)
def test_scores(validator: Validator, changes: dict[str, Any], expected: float) -> None:
    assert score(validator, **changes) == expected


@pytest.mark.parametrize(("battery", "wanted"), [(10, True), (30, True), (49, True), (50, False), (70, False)])
def test_battery_saver_follows_the_level(battery: int, wanted: bool) -> None:
    start = replace(START, battery=battery)
    assert score(SAVER, start, toggles=on("Battery saver")) == wanted
    assert score(SAVER, start, toggles=ALL_OFF) == (not wanted)


@pytest.mark.parametrize(("timeout", "steps"), [("5 minutes", 1), ("15 seconds", -1)])
def test_a_step_past_the_lists_end_cannot_be_reached(timeout: str, steps: int) -> None:
    assert score(TimeoutMoved(steps), replace(START, timeout=timeout)) == 0


def test_nobody_was_starred_and_nothing_was_notified() -> None:
    assert score(StarredContactOpened(), replace(START, starred=""), screen="Contact", contact="") == 0
    assert score(NotifyingAppOpened(), replace(START, notification=""), screen="home") == 0


@pytest.mark.parametrize("answer", ["", "null", "garbage", "/system/bin/sh: settings: inaccessible or not found"])
@pytest.mark.parametrize(
    "validator",
    [
        WIFI_ON,
        BrightnessIs(50),
        TimeoutMoved(1),
        SAVER,
        NotifyingAppOpened(),
        AlarmIs(7, 0, True),
        StarredContactOpened(),
        PageWordSearched(),
    ],
)
def test_a_box_that_answers_nonsense_never_scores(validator: Validator, answer: str) -> None:
    async def nonsense(_: str) -> str:
        return answer

    async def run() -> float:
        return await validator.score(nonsense, await validator.snapshot(nonsense))

    assert asyncio.run(run()) == 0


def test_a_sliders_nearest_position_is_near_enough() -> None:
    def at(value: int) -> Callable[[str], Any]:
        async def probe(_: str) -> str:
            return str(value)

        return probe

    scores = {value: asyncio.run(BrightnessIs(50).score(at(value), {})) for value in (119, 120, 128, 135, 136)}
    assert scores == {119: 0, 120: 1, 128: 1, 135: 1, 136: 0}  # 127.5 +- 8


def test_snapshots_hold_what_their_scores_compare_with() -> None:
    async def keys(validator: Validator) -> set[str]:
        return set(await validator.snapshot(probe_of(START)))

    assert LOW_POWER in asyncio.run(keys(WIFI_ON))
    both = asyncio.run(keys(All((WIFI_ON, TimeoutMoved(1)))))
    assert both == asyncio.run(keys(WIFI_ON)) | asyncio.run(keys(TimeoutMoved(1)))
