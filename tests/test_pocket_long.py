"""The long families: an expert solves them, and needs eight turns on average."""

import asyncio
from statistics import fmean

import pytest
from PIL import Image
from pocket_rig import perform

from cua_agent.actions import ReportTaskComplete
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.long_tasks import eval_tasks, training_tasks
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.registry import make_world
from cua_agent.tasks import CUATask, seed_for

TASKS = [*training_tasks(), *eval_tasks("templates")]
CATEGORIES = sorted({task.category for task in TASKS})


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert reads the state, so episodes need no pixels."""
    monkeypatch.setattr("cua_agent.envs.pocket.environment.draw", lambda *_: Image.new("RGB", (1, 1)))


async def turns(task: CUATask, seed: int) -> int:
    """How many the expert needs; it ends with the report, and the goal holds then and not before."""
    environment = PocketEnvironment()
    await environment.reset(task, seed)
    expert = Expert(task.validation, environment.before)
    for turn in range(1, task.max_steps + 1):
        action = expert.action(environment.state)
        if isinstance(action, ReportTaskComplete):
            assert await environment.compute_reward() == 1.0
            return turn
        await perform(environment, action)
    raise AssertionError(f"{task.id}, seed {seed}: not done in {task.max_steps} turns")


def test_an_expert_needs_eight_turns_on_average_and_never_all_that_there_are() -> None:
    needed = {
        category: [
            asyncio.run(turns(task, seed_for("train", index)))
            for task in TASKS
            if task.category == category
            for index in range(12)
        ]
        for category in CATEGORIES
    }
    means = {category: fmean(each) for category, each in needed.items()}
    assert min(means.values()) > 7 and fmean(means.values()) >= 8, means
    assert max(map(max, needed.values())) < TASKS[0].max_steps


def test_the_world_plays_them_when_asked() -> None:
    world = make_world("pocket", {"horizon": "long"})
    assert world.training_tasks() == world.eval_tasks("seeds") == training_tasks()
    assert not {task.id for task in world.eval_tasks("templates")} & {task.id for task in training_tasks()}
    assert len({task.id for task in TASKS}) == len(TASKS)
