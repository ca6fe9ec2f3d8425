"""The phone's task families: parametrised goals, their wordings, and their validators.

No family can be solved without looking: its goal may hold already, or names what only the screen tells
(a badge, a star, a word, a level). `tests/test_pocket_blind.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

from cua_agent.envs.pocket.state import ALARM_TIMES, TOGGLES
from cua_agent.envs.pocket.validators import (
    SWITCHES,
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
from cua_agent.tasks import CUATask, Difficulty, EvalSplit, Validator

_SWITCH_KEYS = dict(zip(TOGGLES, SWITCHES, strict=False))
_ON_OFF = {True: "on", False: "off"}
_LEVELS = (25, 50, 75)
_BATTERY_LIMIT = 50


@dataclass(frozen=True)
class Goal:
    """One setting of a family's parameters: the words that fill the wordings, and the validator."""

    key: str
    words: dict[str, str]
    validation: Validator


@dataclass(frozen=True)
class Family:
    """Goals that share wordings. `wordings` are trained on, `held_out` are not."""

    category: str
    difficulty: Difficulty
    max_steps: int
    goals: Callable[[], Iterator[Goal]]
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]

    def tasks(self, wordings: tuple[str, ...], tag: str) -> list[CUATask]:
        """One task for every goal and wording."""
        return [
            CUATask(
                id="/".join(part for part in (self.category, goal.key, f"{tag}{index}") if part),
                name=" ".join((self.category.replace("_", " "), goal.key)).strip(),
                description=wording.format(**goal.words),
                difficulty=self.difficulty,
                category=self.category,
                max_steps=self.max_steps,
                validation=goal.validation,
            )
            for goal in self.goals()
            for index, wording in enumerate(wordings)
        ]


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _toggles() -> Iterator[Goal]:
    for name, on in product(TOGGLES, (True, False)):
        validation = SwitchesAre(((_SWITCH_KEYS[name], str(int(on))),))
        yield Goal(f"{_slug(name)}-{_ON_OFF[on]}", {"name": name, "state": _ON_OFF[on]}, validation)


def _toggle_pairs() -> Iterator[Goal]:
    for (a, b), on_a, on_b in product(combinations(TOGGLES, 2), (True, False), (True, False)):
        validation = SwitchesAre(((_SWITCH_KEYS[a], str(int(on_a))), (_SWITCH_KEYS[b], str(int(on_b)))))
        words = {"a": a, "state_a": _ON_OFF[on_a], "b": b, "state_b": _ON_OFF[on_b]}
        yield Goal(f"{_slug(a)}-{_ON_OFF[on_a]}-{_slug(b)}-{_ON_OFF[on_b]}", words, validation)


def brightness_goals() -> Iterator[Goal]:
    """A level to set the brightness to."""
    for level in _LEVELS:
        yield Goal(str(level), {"level": str(level)}, BrightnessIs(level))


def timeout_goals() -> Iterator[Goal]:
    """A step of the screen timeout, up or down."""
    yield Goal("longer", {"way": "longer"}, TimeoutMoved(1))
    yield Goal("shorter", {"way": "shorter"}, TimeoutMoved(-1))


def battery_goals() -> Iterator[Goal]:
    """Battery saver by the level of the battery."""
    yield Goal("", {"limit": str(_BATTERY_LIMIT)}, BatterySaverFollowsLevel(_BATTERY_LIMIT))


def notification_goals() -> Iterator[Goal]:
    """The app with a badge in front."""
    yield Goal("", {}, NotifyingAppOpened())


def _alarm() -> Iterator[Goal]:
    for time, on in product(ALARM_TIMES, (True, False)):
        hour, minutes = map(int, time.split(":"))
        words = {"time": time, "state": _ON_OFF[on]}
        yield Goal(f"{time.replace(':', '')}-{_ON_OFF[on]}", words, AlarmIs(hour, minutes, on))


def _contact() -> Iterator[Goal]:
    yield Goal("", {}, StarredContactOpened())


def word_goals() -> Iterator[Goal]:
    """The word of the day searched for."""
    yield Goal("", {}, PageWordSearched())


def _toggle_and_brightness() -> Iterator[Goal]:
    for name, on, level in product(TOGGLES, (True, False), _LEVELS):
        validation = All((SwitchesAre(((_SWITCH_KEYS[name], str(int(on))),)), BrightnessIs(level)))
        words = {"name": name, "state": _ON_OFF[on], "level": str(level)}
        yield Goal(f"{_slug(name)}-{_ON_OFF[on]}-{level}", words, validation)


FAMILIES = (
    Family(
        "toggle",
        "easy",
        8,
        _toggles,
        ("Make sure {name} is {state}.", "Turn {name} {state}.", "{name} should be {state}."),
        ("I want {name} {state}.", "Make sure that {name} should be {state}."),
    ),
    Family(
        "toggle_pair",
        "hard",
        10,
        _toggle_pairs,
        ("Make sure {a} is {state_a} and {b} is {state_b}.", "Turn {a} {state_a} and {b} {state_b}."),
        ("{a} should be {state_a} and {b} should be {state_b}.",),
    ),
    Family(
        "brightness",
        "medium",
        8,  # as many as the longest way takes: no turns to count up from 0 % without looking
        brightness_goals,
        ("Set the brightness to {level}%.", "Make sure the brightness is {level}%."),
        ("The brightness should be {level}%.",),
    ),
    Family(
        "timeout",
        "hard",
        9,
        timeout_goals,
        ("Make the screen timeout one step {way}.", "Set the screen timeout one step {way}."),
        ("The screen timeout should be one step {way}.",),
    ),
    Family(
        "battery",
        "medium",
        8,
        battery_goals,
        ("If the battery is below {limit}%, turn battery saver on, otherwise off.",),
        ("Battery saver should be on if the battery is below {limit}%, otherwise off.",),
    ),
    Family(
        "notification",
        "easy",
        6,
        notification_goals,
        ("Open the app that has a notification.", "Open the app with the red badge."),
        ("Open the app that has a red badge.",),
    ),
    Family(
        "alarm",
        "easy",
        7,
        _alarm,
        ("Make sure the {time} alarm is {state}.", "Turn the {time} alarm {state}."),
        ("The {time} alarm should be {state}.",),
    ),
    Family(
        "contact",
        "medium",
        8,
        _contact,
        ("Open the contact with the star.", "Open the starred contact."),
        ("Open the contact that has a star.",),
    ),
    Family(
        "word",
        "medium",
        7,
        word_goals,
        ("Search the browser for the word of the day.", "Search for the word of the day."),
        ("Open the browser and search for the word of the day.",),
    ),
)
HELD_OUT_FAMILIES = (
    Family(
        "toggle_and_brightness",
        "hard",
        13,
        _toggle_and_brightness,
        (),
        ("Make sure {name} is {state} and set the brightness to {level}%.",),
    ),
)


def training_tasks() -> list[CUATask]:
    """Every goal of every training family, in every training wording."""
    return [task for family in FAMILIES for task in family.tasks(family.wordings, "w")]


def eval_tasks(split: EvalSplit) -> list[CUATask]:
    """`seeds`: the training goals, to be run on held-out seeds. `templates`: held-out wordings and combinations."""
    if split == "seeds":
        return training_tasks()
    return [task for family in (*FAMILIES, *HELD_OUT_FAMILIES) for task in family.tasks(family.held_out, "h")]
