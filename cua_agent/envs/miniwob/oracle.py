"""Scripted experts that solve MiniWoB++ pages through the same actions as an agent.

They name elements (`Target`) as the screen or the goal does, so that a small model can learn the names from their
demonstrations, and give `Point`s where nothing has a name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from cua_agent.actions import Action, Tap, Target, TypeText
from cua_agent.envs.miniwob.environment import MiniWobEnvironment
from cua_agent.envs.miniwob.experts import LOOKING, SUBMIT, TEXTBOX, Episode, Expert, matched, quoted, tap


def _select(goal: str) -> list[Action]:
    names = matched(r"Select (.*) and click Submit", goal)
    return [*(tap(name) for name in names.split(", ") if name != "nothing"), Tap(SUBMIT)]


def _enter(goal: str) -> list[Action]:
    return [TypeText(quoted(goal)[0], TEXTBOX), Tap(SUBMIT)]


def _enter_in_case(goal: str) -> list[Action]:
    text = quoted(goal)[0]
    return [TypeText(text.upper() if "upper" in goal else text.lower(), TEXTBOX), Tap(SUBMIT)]


def _enter_password(goal: str) -> list[Action]:
    password = quoted(goal)[0]
    return [TypeText(password, Target("Password")), TypeText(password, Target("Verify password")), Tap(SUBMIT)]


def _log_in(goal: str) -> list[Action]:
    user, password = quoted(goal)
    return [TypeText(user, Target("Username")), TypeText(password, Target("Password")), tap("Login")]


def _widget(goal: str) -> list[Action]:
    kind = quoted(goal)[0]
    return [tap("textbox" if kind == "text" else kind)]


def _always(*actions: Action) -> Callable[[str], Sequence[Action]]:
    return lambda _goal: actions


_PLANS: dict[str, Callable[[str], Sequence[Action]]] = {
    "click-test": _always(tap("Click Me!")),
    "click-test-2": _always(tap("ONE")),
    "click-button-sequence": _always(tap("ONE"), tap("TWO")),
    "click-dialog": _always(tap("Close")),
    "focus-text": _always(Tap(TEXTBOX)),
    "click-button": lambda goal: [tap(quoted(goal)[0])],
    "click-dialog-2": lambda goal: [tap(quoted(goal)[0])],
    "click-link": lambda goal: [tap(quoted(goal)[0])],
    "click-tab": lambda goal: [tap(matched(r"(Tab #\d)", goal))],
    "click-widget": _widget,
    "focus-text-2": lambda goal: [tap(f"{matched(r'the (...) input', goal)} textbox")],
    "click-option": _select,
    "click-checkboxes": _select,
    "click-checkboxes-transfer": _select,
    "click-checkboxes-large": _select,
    "enter-text": _enter,
    "enter-text-dynamic": _enter,
    "enter-text-2": _enter_in_case,
    "enter-password": _enter_password,
    "login-user": _log_in,
}


def _follow(plan: Callable[[str], Sequence[Action]]) -> Expert:
    async def expert(episode: Episode) -> AsyncIterator[Action]:
        for action in plan(episode.goal):
            yield action

    return expert


EXPERTS: dict[str, Expert] = {
    **{page: _follow(plan) for page, plan in _PLANS.items()},
    **LOOKING,
}
"""The experts by page name."""


async def ground(environment: MiniWobEnvironment, action: Action) -> Action:
    """`action` with its targets replaced by points. Raises `ValueError` for a target that is not on the screen."""
    changes: dict[str, Any] = {}
    for field in ("at", "start", "end"):
        target = getattr(action, field, None)
        if isinstance(target, Target):
            point = await environment.locate(target.name)
            if point is None:
                raise ValueError(f"no element called {target.name!r}")
            changes[field] = point
    return replace(action, **changes) if changes else action
