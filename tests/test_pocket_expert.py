"""The expert solves every task, and never relies on anything that it has not seen."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from PIL import Image
from pocket_rig import perform

from cua_agent.actions import Action, ReportTaskComplete
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pocket.screens import elements
from cua_agent.envs.pocket.state import TOGGLES, PhoneState, make_state
from cua_agent.tasks import CUATask, get_eval_tasks, get_training_tasks, seed_for

pytestmark = pytest.mark.slow

TASKS = get_training_tasks() + get_eval_tasks(split="templates")
CATEGORIES = sorted({task.category for task in TASKS})


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert reads the state, so thousands of episodes need no pixels."""
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr("cua_agent.envs.pocket.environment.draw", lambda *_: blank)


@dataclass(frozen=True)
class Glance:
    """What one screenshot shows: the screen, its visible elements, and whether it is covered or changed by a search."""

    screen: str
    names: frozenset[str]
    covered: bool
    query: str

    @classmethod
    def at(cls, state: PhoneState) -> "Glance":
        names = frozenset(element.name for element in elements(state))
        return cls(state.screen, names, state.dialog is not None, state.query)


async def _play(task: CUATask, seed: int, environment: PocketEnvironment) -> tuple[list[Action], list[Glance], float]:
    await environment.reset(task, seed)
    expert = Expert(task.validation, environment.before)
    actions: list[Action] = []
    glances: list[Glance] = []
    for _ in range(task.max_steps):
        glances.append(Glance.at(environment.state))
        actions.append(expert.action(environment.state))
        if isinstance(actions[-1], ReportTaskComplete):
            break
        assert await perform(environment, actions[-1]) is not None, f"{task.id} {seed}: {actions[-1]} is not there"
    return actions, glances, await environment.compute_reward()


def play(task: CUATask, seed: int) -> tuple[list[Action], list[Glance], float]:
    """The expert's actions, what it saw before each of them, and the reward at the end."""
    return asyncio.run(_play(task, seed, PocketEnvironment()))


# Starts whose shortest way is a turn too long. The bound on brightness is tight on purpose: with one more, taps on -
# could be counted to 0 % and up again without looking (tests/test_pocket_blind.py).
TOO_LONG = {"brightness": 0.03}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_task_is_solved_in_time_and_reported(category: str) -> None:
    unsolved, episodes = [], 0
    for i, task in enumerate(task for task in TASKS if task.category == category):
        for seed in range(10 * i, 10 * i + 10):
            actions, _, reward = play(task, seed_for("train", seed))
            episodes += 1
            if (reward, actions[-1]) != (1.0, ReportTaskComplete()):
                unsolved.append((task.id, seed, actions))
    assert len(unsolved) <= TOO_LONG.get(category, 0.0) * episodes, unsolved


def evidence(task: CUATask, start: PhoneState) -> list[Callable[[Glance], bool]]:
    """What an agent that cannot read the state has to have seen (each at least once) before it may report."""
    switches = [name for name in TOGGLES if name in task.description]
    switch_seen = [lambda glance, name=name: name in glance.names for name in switches]
    return {
        "toggle": switch_seen,
        "toggle_pair": switch_seen,
        "brightness": [lambda glance: glance.screen == "Display"],
        "toggle_and_brightness": [*switch_seen, lambda glance: glance.screen == "Display"],
        "timeout": [lambda glance: glance.screen == "Screen timeout"],
        "battery": [lambda glance: "Battery saver" in glance.names],
        "notification": [lambda glance: glance.screen == "home"],
        "alarm": [lambda glance: glance.screen == "Clock"],
        "contact": [lambda glance: glance.screen == "Contacts" and start.starred in glance.names],
        "word": [lambda glance: glance.screen == "Browser" and not glance.query],
    }[task.category]


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_unseen_is_relied_on(category: str) -> None:
    tasks = [task for task in TASKS if task.category == category]
    for seed in range(150):
        task = tasks[seed % len(tasks)]
        seen = [glance for glance in play(task, seed)[1] if not glance.covered]
        facts = evidence(task, make_state(seed, "shuffled"))
        assert facts
        for fact in facts:
            assert any(map(fact, seen)), f"{task.id} with seed {seed} was reported unseen"


def test_goals_that_hold_already_are_looked_at_and_left_alone() -> None:
    task = next(task for task in TASKS if task.id == "toggle/wi-fi-on/w0")
    seed = next(seed for seed in range(100) if holds_at_home(seed))
    actions, glances, _ = play(task, seed)
    assert len(actions) > 1
    assert glances[-1].screen == "Settings"
    assert not any("Wi-Fi" in str(action) for action in actions)


def holds_at_home(seed: int) -> bool:
    state = make_state(seed, "shuffled")
    return state.toggles["Wi-Fi"] and state.screen == "home" and not (state.dialog or state.pending_dialog)
