"""Long families: several goals of the others in one task, which an expert needs eight turns for on average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from cua_agent.envs.pocket.tasks import (
    Family,
    Goal,
    battery_goals,
    brightness_goals,
    notification_goals,
    timeout_goals,
    word_goals,
)
from cua_agent.envs.pocket.validators import All
from cua_agent.tasks import CUATask, EvalSplit

_MAX_STEPS = 16
_BRIGHTNESS = "Set the brightness to {level}%"
_TIMEOUT = "ake the screen timeout one step {way}"
_BATTERY = "If the battery is below {limit}%, turn battery saver on, otherwise off."

Goals = Callable[[], Iterator[Goal]]


def _together(*parts: Goals) -> Goals:
    """Every combination of one goal of each part; what has to be in front at the end comes last."""

    def goals() -> Iterator[Goal]:
        for combination in product(*(part() for part in parts)):
            words = {name: word for goal in combination for name, word in goal.words.items()}
            key = "-".join(goal.key for goal in combination if goal.key)
            yield Goal(key, words, All(tuple(goal.validation for goal in combination)))

    return goals


def _family(category: str, parts: Sequence[Goals], wording: str, held_out: str) -> Family:
    return Family(category, "hard", _MAX_STEPS, _together(*parts), (wording,), (held_out,))


LONG_FAMILIES = (
    _family(
        "brightness_battery",
        (brightness_goals, battery_goals),
        f"{_BRIGHTNESS}. {_BATTERY}",
        f"{_BATTERY} {_BRIGHTNESS}.",
    ),
    _family("timeout_battery", (timeout_goals, battery_goals), f"M{_TIMEOUT}. {_BATTERY}", f"{_BATTERY} M{_TIMEOUT}."),
    _family(
        "brightness_word",
        (brightness_goals, word_goals),
        f"{_BRIGHTNESS} and search the browser for the word of the day.",
        f"{_BRIGHTNESS}. Search for the word of the day.",
    ),
    _family(
        "battery_word",
        (battery_goals, word_goals),
        f"{_BATTERY} Search the browser for the word of the day.",
        f"{_BATTERY} Search for the word of the day.",
    ),
    _family(
        "brightness_timeout_notification",
        (brightness_goals, timeout_goals, notification_goals),
        f"{_BRIGHTNESS}, m{_TIMEOUT} and open the app with the red badge.",
        f"{_BRIGHTNESS}. M{_TIMEOUT}. Open the app that has a notification.",
    ),
)


def training_tasks() -> list[CUATask]:
    """Every goal of every long family."""
    return [task for family in LONG_FAMILIES for task in family.tasks(family.wordings, "w")]


def eval_tasks(split: EvalSplit) -> list[CUATask]:
    """The same goals, or held-out wordings."""
    if split == "seeds":
        return training_tasks()
    return [task for family in LONG_FAMILIES for task in family.tasks(family.held_out, "h")]
