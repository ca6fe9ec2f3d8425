"""An expert that reads the phone's state: the demonstrator for behaviour cloning and the upper bound in tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cua_agent.actions import Action, Direction, ReportTaskComplete, Scroll, Tap, Target, TypeText
from cua_agent.envs.pocket.screens import elements, find_element, list_rows
from cua_agent.envs.pocket.state import BATTERY_SAVER, DIALOGS, PACKAGES, PARENTS, TIMEOUTS, TOGGLES, PhoneState
from cua_agent.envs.pocket.validators import (
    BATTERY,
    LOW_POWER,
    NOTIFICATIONS,
    SWITCHES,
    TIMEOUT,
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
from cua_agent.tasks import Validator

_SWITCH_NAMES = dict(zip(SWITCHES, (*TOGGLES, BATTERY_SAVER), strict=True))
Move = tuple[str, Action]  # the screen where the action is to be done, and the action


@dataclass
class Expert:
    """Plays one episode by a shortest way on which it has *seen* all that it relies on.

    It never reports a goal that holds by luck: it goes and looks first, as an agent without access to the state
    must. `goal` is the task's validator, `before` its snapshot after reset.
    """

    goal: Validator
    before: Mapping[str, str]
    seen: set[str] = field(default_factory=set)

    def action(self, state: PhoneState) -> Action:
        """The next action; the report when the goal holds and has been seen to hold."""
        if state.dialog:
            return Tap(Target(DIALOGS[state.dialog]))
        self.seen.update(element.name for element in elements(state))
        move = _next_move(state, self.goal, self.before, self.seen)
        if move is None:
            return ReportTaskComplete()
        screen, action = move
        return _in_view(state, action) if state.screen == screen else _navigate(state, screen)


def _navigate(state: PhoneState, screen: str) -> Action:
    """One step along the screens' tree towards `screen`."""
    path = [screen]
    while path[0] != "home":
        path.insert(0, PARENTS[path[0]])
    if state.screen in path:
        return _in_view(state, Tap(Target(path[path.index(state.screen) + 1])))
    parent = PARENTS[state.screen]
    return Tap(Target("Back" if parent in path and parent != "home" else "Home"))


def _in_view(state: PhoneState, action: Action) -> Action:
    """The action itself, or a scroll when its target is a list row out of view."""
    if not (isinstance(action, Tap) and isinstance(action.at, Target)):
        return action
    name, rows = action.at.name, list_rows(state)
    if find_element(state, name) or name not in rows:
        return action
    below = rows.index(name) > state.first_row.get(state.screen, 0)
    return Scroll(Direction.DOWN if below else Direction.UP)


def _next_move(state: PhoneState, goal: Validator, before: Mapping[str, str], seen: set[str]) -> Move | None:
    match goal:
        case SwitchesAre(wanted):
            return _switches(state, dict(wanted), seen)
        case BrightnessIs(percent):
            return _brightness(state, percent, seen)
        case TimeoutMoved(steps):
            return _timeout(state, steps, before)
        case BatterySaverFollowsLevel(percent):
            level = re.search(r"level: (\d+)", before[BATTERY])
            return _switches(state, {LOW_POWER: str(int(int(level[1]) < percent))}, seen) if level else None
        case NotifyingAppOpened():
            return _notification(state, before, seen)
        case AlarmIs(hour, minutes, on):
            time = f"{hour}:{minutes:02d}"
            return None if time in seen and state.alarms[time] is on else ("Clock", Tap(Target(time)))
        case StarredContactOpened():
            return _contact(state)
        case PageWordSearched():
            return _word(state)
        case All(parts):
            moves = (_next_move(state, part, before, seen) for part in parts)
            return next((move for move in moves if move), None)
    raise TypeError(f"no expert for {type(goal).__name__}")


def _switches(state: PhoneState, wanted: Mapping[str, str], seen: set[str]) -> Move | None:
    for key, value in wanted.items():
        name = _SWITCH_NAMES[key]
        if name not in seen or state.toggles[name] != (value == "1"):
            return ("Battery" if name == BATTERY_SAVER else "Settings", Tap(Target(name)))
    return None


def _brightness(state: PhoneState, percent: int, seen: set[str]) -> Move | None:
    if "Brightness" in seen and state.brightness == percent:
        return None
    return "Display", Tap(Target("+" if state.brightness < percent else "-"))


def _timeout(state: PhoneState, steps: int, before: Mapping[str, str]) -> Move | None:
    names = list(TIMEOUTS)
    start = list(TIMEOUTS.values()).index(int(before[TIMEOUT]))
    wanted = names[start + steps]
    return None if state.timeout == wanted else ("Screen timeout", Tap(Target(wanted)))


def _notification(state: PhoneState, before: Mapping[str, str], seen: set[str]) -> Move | None:
    package = before[NOTIFICATIONS].strip().removeprefix("pkg=")
    app = next(name for name, value in PACKAGES.items() if value == package)
    return None if state.screen == app and app in seen else ("home", Tap(Target(app)))


def _contact(state: PhoneState) -> Move | None:
    if state.screen == "Contact":
        return None if state.contact == state.starred else ("Contact", Tap(Target("Back")))
    return "Contacts", Tap(Target(state.starred))


def _word(state: PhoneState) -> Move | None:
    if state.query == state.page_word:
        return None if state.screen == "Browser" else ("Browser", ReportTaskComplete())
    if state.query:
        return "Browser", Tap(Target("Back"))
    return "Browser", TypeText(state.page_word, Target("Address bar"), press_enter=True)
