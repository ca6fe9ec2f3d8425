"""Validators of phone tasks: shell commands only, so that they run on a real Android box as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from cua_agent.tasks import Probe, Validator

FOCUS = "dumpsys window | grep mCurrentFocus"
BATTERY = "dumpsys battery | grep level"
NOTIFICATIONS = "dumpsys notification | grep pkg="
INTENT = "dumpsys activity top | grep dat="
PAGE_TITLE = "dumpsys activity top | grep title="
ALARMS = "content query --uri content://com.android.deskclock/alarms --projection hour:minutes:enabled"
CONTACTS = "content query --uri content://com.android.contacts/contacts --projection display_name:starred"
LOW_POWER = "global low_power"
BRIGHTNESS = "system screen_brightness"
TIMEOUT = "system screen_off_timeout"
SWITCHES = ("global wifi_on", "global bluetooth_on", "global airplane_mode_on", "global zen_mode", LOW_POWER)
TIMEOUT_STEPS_MS = (15_000, 30_000, 60_000, 120_000, 300_000)
_BRIGHTNESS_TOLERANCE = 8  # of 255; a real slider has no exact steps


def get_command(key: str) -> str:
    """The shell command that reads a setting, given as "namespace name"."""
    return f"settings get {key}"


async def _read_switches(probe: Probe) -> dict[str, str]:
    return {key: (await probe(get_command(key))).strip() for key in SWITCHES}


@dataclass(frozen=True)
class SwitchesAre:
    """The given switches hold the given values ("1" or "0"), and no other switch was changed on the way."""

    wanted: tuple[tuple[str, str], ...]

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return await _read_switches(probe)

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return float(await _read_switches(probe) == {**before, **dict(self.wanted)})


@dataclass(frozen=True)
class BrightnessIs:
    """The brightness is at `percent`."""

    percent: int

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 - the goal is absolute
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        value = (await probe(get_command(BRIGHTNESS))).strip()
        wanted = self.percent * 255 / 100
        return float(value.isdecimal() and abs(int(value) - wanted) <= _BRIGHTNESS_TOLERANCE)


@dataclass(frozen=True)
class TimeoutMoved:
    """The screen timeout moved by `steps` entries of Android's list from where it was."""

    steps: int

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {TIMEOUT: (await probe(get_command(TIMEOUT))).strip()}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        entries = [str(entry) for entry in TIMEOUT_STEPS_MS]
        start, now = before[TIMEOUT], (await probe(get_command(TIMEOUT))).strip()
        return float(start in entries and now in entries and entries.index(now) - entries.index(start) == self.steps)


@dataclass(frozen=True)
class BatterySaverFollowsLevel:
    """Battery saver is on if the battery was below `percent`, otherwise off; nothing else was switched."""

    percent: int

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {**await _read_switches(probe), BATTERY: await probe(BATTERY)}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        level = re.search(r"level: (\d+)", before[BATTERY])
        switches = {key: before[key] for key in SWITCHES}
        if level is None:
            return 0.0
        wanted = switches | {LOW_POWER: str(int(int(level[1]) < self.percent))}
        return float(await _read_switches(probe) == wanted)


@dataclass(frozen=True)
class NotifyingAppOpened:
    """The app in front is the one that had a notification at the start."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {NOTIFICATIONS: await probe(NOTIFICATIONS)}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        package = re.search(r"pkg=([\w.]+)", before[NOTIFICATIONS])
        return float(package is not None and f" {package[1]}/" in await probe(FOCUS))


@dataclass(frozen=True)
class AlarmIs:
    """The alarm at hour:minutes is on or off; the others are as they were."""

    hour: int
    minutes: int
    on: bool

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {ALARMS: await probe(ALARMS)}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        wanted = re.sub(
            rf"(hour={self.hour}, minutes={self.minutes}, enabled=)\d", rf"\g<1>{int(self.on)}", before[ALARMS]
        )
        return float(f"hour={self.hour}, minutes={self.minutes}," in wanted and await probe(ALARMS) == wanted)


@dataclass(frozen=True)
class StarredContactOpened:
    """The page of the one starred contact is open."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {CONTACTS: await probe(CONTACTS)}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        starred = re.search(r"display_name=(.+), starred=1", before[CONTACTS])
        intent = (await probe(INTENT)).strip()
        return float(starred is not None and intent.endswith(f"contacts/{starred[1]}"))


@dataclass(frozen=True)
class PageWordSearched:
    """The browser searched for the word that its first page showed."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {PAGE_TITLE: await probe(PAGE_TITLE)}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        word = re.search(r"Word of the day: (\S+)", before[PAGE_TITLE])
        query = re.search(r"\?q=(.*)$", (await probe(INTENT)).strip())
        return float(word is not None and query is not None and query[1].casefold() == word[1].casefold())


@dataclass(frozen=True)
class All:
    """Every part holds; in part when only some do: the mean of their scores."""

    parts: tuple[Validator, ...]

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        before: dict[str, str] = {}
        for part in self.parts:
            before.update(await part.snapshot(probe))
        return before

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return fmean([await part.score(probe, before) for part in self.parts])
