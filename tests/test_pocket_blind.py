"""No family of tasks can be solved without looking at the screen.

Two opponents that are blind to the pixels, each measured on seeds that it was not fitted to:

- *Open loop*: for a fixed goal, every action sequence that the expert used on some seeds, as it was and with ways of
  getting to a known screen put before it (go home; go back, then home; press every dialog's button), is replayed on
  other seeds without looking. The best one counts.
- *Blind plans*: a navigator that always knows where it is, closes dialogs and finds every row, and so is better than
  any policy that reads nothing but the text answers ("no element called ..."), carries out a fixed plan of taps and
  typing. The best plan of all short ones counts. What this opponent cannot know is what the screen alone tells: whether
  a switch is on already, which contact has the star, which word the page shows.

Both must stay below `BAR`; a trained policy is expected to reach 0.9. Half of the switches are right from the start,
so that doing nothing (or always flipping) is worth 0.5 there, and that is as far as a blind policy should get.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import product

import pytest
from PIL import Image
from pocket_rig import perform

from cua_agent.actions import Action, Button, PressButton, ReportTaskComplete, Tap, Target, TypeText
from cua_agent.envs.pocket import oracle
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.state import ALARM_TIMES, APPS, DIALOGS, NAMES, TIMEOUTS, TOGGLES, WORDS
from cua_agent.tasks import CUATask, get_eval_tasks, get_training_tasks, seed_for

pytestmark = pytest.mark.slow

BAR = 0.6
GOALS = 2  # of each family
LEARN, CHOOSE, TEST = range(25), range(100, 112), range(200, 800)  # seeds; those of TEST are shared by a family's goals
TASKS = get_training_tasks() + get_eval_tasks(split="templates")
CATEGORIES = sorted({task.category for task in TASKS})

Plan = tuple[Action, ...]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr("cua_agent.envs.pocket.environment.draw", lambda *_: blank)


def goals_of(category: str) -> list[CUATask]:
    """Some tasks of a family, no two with the same goal."""
    by_goal = {task.validation: task for task in TASKS if task.category == category}
    return list(by_goal.values())[:: -(-len(by_goal) // GOALS)]


def mean_success(category: str, success: Callable[[CUATask, range], Coroutine[None, None, float]]) -> float:
    """Mean over goals of the family, each tested on seeds of its own."""
    goals = goals_of(category)
    rates = [asyncio.run(success(task, TEST[i :: len(goals)])) for i, task in enumerate(goals)]
    return sum(rates) / len(rates)


def tap(name: str) -> Tap:
    return Tap(Target(name))


HOME, BACK = PressButton(Button.HOME), PressButton(Button.BACK)
DISMISSALS = tuple(tap(button) for button in DIALOGS.values())
BEGINNINGS: tuple[Plan, ...] = ((), (HOME,), (BACK, HOME), DISMISSALS, (*DISMISSALS, HOME))


async def demonstrated(environment: PocketEnvironment, task: CUATask, index: int) -> Plan:
    """What the expert does on a seed."""
    await environment.reset(task, seed_for("clone", index))
    expert, actions = oracle.Expert(task.validation, environment.before), []
    while not actions or not isinstance(actions[-1], ReportTaskComplete):
        actions.append(expert.action(environment.state))
        await perform(environment, actions[-1])
    return tuple(actions)


def variants(plans: Iterable[Plan]) -> list[Plan]:
    """Every plan, with and without its reactions to chance (a dialog, another start screen), after every beginning."""
    found: dict[Plan, None] = {}
    for plan in plans:
        calm = tuple(action for action in plan if action not in DISMISSALS)
        direct = tuple(action for action in calm if action != tap("Home"))
        found |= dict.fromkeys(start + rest for start in BEGINNINGS for rest in (plan, calm, direct))
    return list(found)


async def replay(environment: PocketEnvironment, task: CUATask, plan: Plan, index: int) -> bool:
    await environment.reset(task, seed_for("clone", index))
    for action in plan[: task.max_steps]:
        if isinstance(action, ReportTaskComplete):
            return await environment.compute_reward() == 1
        await perform(environment, action)
    return False


async def open_loop_success(task: CUATask, test: range = TEST) -> float:
    """Success on the seeds `test` of the plan that is best on those of CHOOSE."""
    environment = PocketEnvironment()
    plans = variants([await demonstrated(environment, task, index) for index in LEARN])
    scores = [sum([await replay(environment, task, plan, index) for index in CHOOSE]) for plan in plans]
    best = plans[scores.index(max(scores))]
    return sum([await replay(environment, task, best, index) for index in test]) / len(test)


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_fixed_sequence_of_actions_solves_a_family(category: str) -> None:
    rate = mean_success(category, open_loop_success)
    assert rate < BAR


Move = tuple[str, Action]  # the screen where it is done, and what is done there


def moves_of(task: CUATask) -> tuple[Sequence[Move], int]:
    """What a plan for the task may consist of, and of how many moves."""
    switches = [("Settings", tap(name)) for name in TOGGLES if name in task.description]
    brightness = [("Display", tap(name)) for name in ("-", "+", "Brightness")]
    return {
        "toggle": (switches, 1),
        "toggle_pair": (switches, 2),
        "brightness": (brightness, 5),
        "toggle_and_brightness": (switches + brightness, 3),
        "timeout": ([("Screen timeout", tap(name)) for name in TIMEOUTS], 1),
        "battery": ([("Battery", tap("Battery saver"))], 1),
        "notification": ([("home", tap(app)) for app in APPS], 1),
        "alarm": ([("Clock", tap(time)) for time in ALARM_TIMES], 1),
        "contact": ([("Contacts", tap(name)) for name in NAMES], 1),
        "word": ([("Browser", TypeText(word, Target("Address bar"), press_enter=True)) for word in WORDS], 1),
    }[task.category]


async def carry_out(environment: PocketEnvironment, task: CUATask, plan: Sequence[Move], index: int) -> bool:
    """Whether the plan, carried out by the navigator, reached the goal within the task's turns."""
    await environment.reset(task, seed_for("clone", index))
    todo = list(plan)
    for _ in range(task.max_steps - 1):  # the last turn is the report
        state = environment.state
        if state.dialog:
            action: Action = tap(DIALOGS[state.dialog])
        elif not todo:
            break
        elif state.screen != todo[0][0]:
            action = oracle._navigate(state, todo[0][0])
        else:
            action = oracle._in_view(state, todo[0][1])
            if action is todo[0][1]:
                todo.pop(0)
        await perform(environment, action)
    return not todo and await environment.compute_reward() == 1


async def blind_plan_success(task: CUATask, test: range = TEST) -> float:
    """Success on the seeds `test` of the plan that is best on those of CHOOSE."""
    environment = PocketEnvironment()
    moves, longest = moves_of(task)
    plans = [plan for length in range(longest + 1) for plan in product(moves, repeat=length)]
    scores = [sum([await carry_out(environment, task, plan, index) for index in CHOOSE]) for plan in plans]
    best = plans[scores.index(max(scores))]
    return sum([await carry_out(environment, task, best, index) for index in test]) / len(test)


@pytest.mark.parametrize(
    "category",
    CATEGORIES,
)
def test_no_plan_solves_a_family_even_when_well_navigated(category: str) -> None:
    rate = mean_success(category, blind_plan_success)
    assert rate < BAR


def test_the_navigator_fails_for_want_of_eyes_only() -> None:
    """With one look at the switch the same navigator solves every episode."""
    task = goals_of("toggle")[0]
    (flip,), _ = moves_of(task)
    environment = PocketEnvironment()

    async def solved(index: int) -> bool:
        await environment.reset(task, seed_for("clone", index))
        right_already = await environment.compute_reward() == 1
        return await carry_out(environment, task, [] if right_already else [flip], index)

    assert all(asyncio.run(solved(index)) for index in range(200))
    assert 0.4 < asyncio.run(blind_plan_success(task)) < BAR
