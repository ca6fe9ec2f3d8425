"""How a real phone is brought to the start of an episode: the commands, and that they are seen to work."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from gbox_sdk import AsyncGboxClient

from cua_agent.envs.android import start
from cua_agent.envs.android.start import ANDROID_FAMILIES, Start, android_start
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.gbox.box import Box
from cua_agent.envs.gbox.settings import GBoxSettings
from cua_agent.envs.gbox.start import start_on_android
from cua_agent.envs.pocket.state import make_state
from cua_agent.envs.pocket.tasks import FAMILIES
from cua_agent.envs.pocket.validators import All, BrightnessIs, SwitchesAre
from cua_agent.tasks import CUATask
from tests.gbox_rig import TASKS

WIFI, AIRPLANE = "global wifi_on", "global airplane_mode_on"


class Phone:
    """An Android shell that knows the commands of a start, and its settings; `stuck` ones never change."""

    def __init__(self, stuck: tuple[str, ...] = ()) -> None:
        self.stuck = stuck
        self.settings = {WIFI: "1", "global bluetooth_on": "1", AIRPLANE: "0", "global zen_mode": "0"}
        self.ran: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        command = json.loads(request.content)["command"]
        output = "\n".join(self.run(part) for part in command.split("; "))
        return httpx.Response(200, json={"stdout": f"{output}\n", "stderr": "", "exitCode": 0})

    def run(self, command: str) -> str:
        if command.startswith("settings get "):
            return self.settings.get(command.removeprefix("settings get "), "null")
        self.ran.append(command)
        switches = {
            r"svc wifi (\w+)": WIFI,
            r"svc bluetooth (\w+)": "global bluetooth_on",
            r"cmd connectivity airplane-mode (\w+)": AIRPLANE,
            r"cmd notification set_dnd (\w+)": "global zen_mode",
            r"cmd power set-mode (\w+)": "global low_power",
        }
        for pattern, key in switches.items():
            if match := re.fullmatch(pattern, command):
                self.put(key, str(int(match[1] in ("enable", "priority", "1"))))
        if match := re.fullmatch(r"settings put (\S+ \S+) (\S+)", command):
            self.put(match[1], match[2])
        return ""

    def put(self, key: str, value: str) -> None:
        if key not in self.stuck:
            self.settings[key] = value


def prepare(phone: Phone, task: CUATask, seed: int) -> None:
    async def main() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(phone))
        async with AsyncGboxClient(api_key="k", base_url="http://box", http_client=http) as client:
            await start_on_android(Box(client, "b", GBoxSettings(api_key="k")), task, seed)

    asyncio.run(main())


def test_a_switch_starts_as_the_seed_draws_it() -> None:
    starts = {seed: android_start(SwitchesAre(((WIFI, "1"),)), seed) for seed in range(40)}
    assert {start.settings[WIFI] for start in starts.values()} == {"0", "1"}
    for seed, ready in starts.items():
        on = make_state(seed, "fixed").toggles["Wi-Fi"]
        assert ready.settings == {AIRPLANE: "0", WIFI: str(int(on))}
        switch = "svc wifi enable" if on else "svc wifi disable"
        assert ready.commands == ("cmd connectivity airplane-mode disable", switch)


def test_aeroplane_mode_is_tried_with_the_radios_off() -> None:
    """It switches them off by itself, which would look as if the agent had."""
    ready = android_start(SwitchesAre(((AIRPLANE, "1"),)), 0)
    assert ready.settings.items() >= {WIFI: "0", "global bluetooth_on": "0"}.items()
    assert ready.commands[0].startswith("cmd connectivity airplane-mode")


def test_brightness_is_set_by_hand_not_by_the_light_sensor() -> None:
    seed = next(seed for seed in range(50) if make_state(seed, "fixed").brightness == 75)
    assert android_start(BrightnessIs(25), seed) == Start(
        ("settings put system screen_brightness_mode 0", "settings put system screen_brightness 191"),
        {"system screen_brightness_mode": "0", "system screen_brightness": "191"},
    )


def test_parts_of_a_goal_are_prepared_together() -> None:
    both = android_start(All((SwitchesAre(((WIFI, "1"),)), BrightnessIs(50))), 1)
    assert {WIFI, "system screen_brightness"} <= set(both.settings)


@pytest.mark.parametrize("category", [family.category for family in FAMILIES])
def test_the_families_that_can_be_prepared_are_those_that_the_configuration_allows(category: str) -> None:
    tasks = [task for task in TASKS.values() if task.category == category]
    if category in ANDROID_FAMILIES:
        assert all(android_start(task.validation, 0).settings for task in tasks)
    elif category != "toggle_pair":  # two switches: aeroplane mode would move the other one
        with pytest.raises(ValueError, match="no way is known"):
            android_start(tasks[0].validation, 0)


@pytest.mark.parametrize("category", ANDROID_FAMILIES)
def test_the_phone_is_seen_to_be_ready(category: str) -> None:
    task = next(task for task in TASKS.values() if task.category == category)
    for seed in range(5):
        phone = Phone()
        prepare(phone, task, seed)
        ready = android_start(task.validation, seed)
        assert {key: phone.settings[key] for key in ready.settings} == ready.settings
        assert phone.ran[-1] == "input keyevent KEYCODE_HOME"


def test_a_phone_that_does_not_get_ready_costs_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_SETTLE_S", 0.2)
    seed = next(seed for seed in range(50) if not make_state(seed, "fixed").toggles["Wi-Fi"])
    with pytest.raises(EnvironmentFailure, match=r"did not get ready: global wifi_on is 1, not 0"):
        prepare(Phone(stuck=(WIFI,)), TASKS["toggle/wi-fi-on/w0"], seed)


def test_every_task_of_gbox_has_a_validator_that_only_uses_the_shell() -> None:
    """A task without one could only ever score 0."""
    asked: list[Any] = []

    async def probe(command: str) -> str:
        asked.append(command)
        return "1"

    for task in TASKS.values():
        asked.clear()
        before = asyncio.run(task.validation.snapshot(probe))
        asyncio.run(task.validation.score(probe, before))
        assert asked, task.id
        assert all(re.match(r"(settings get|dumpsys|content query) ", command) for command in asked)
