"""`GBoxAReaLEnv`: an episode step by step is what the agent loop plays, on AReaL's executor, too."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_random

from cua_agent.actions import Button, Point, PressButton, ReportTaskComplete, Tap, Target, TypeText
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.parsing import render_tool_call
from cua_agent.tasks import get_training_tasks, seed_for
from cua_agent.trajectory import Outcome
from tests.agent_fakes import ScriptedEnvironment, pixels, screenshot, task
from trainers.areal.env import GBoxAReaLEnv
from trainers.config import ModelConfig, RewardConfig, RolloutConfig, TrainConfig

GUIDE = Path(__file__).parents[1] / "docs" / "migration.md"
CONFIG = TrainConfig(reward=RewardConfig(success=2.0, false_claim=-1.0, failure=-0.5, out_of_turns=-0.25))
DONE = render_tool_call(ReportTaskComplete())
HOME = PressButton(Button.HOME)


def started(environment: Any, config: TrainConfig = CONFIG, max_steps: int = 5) -> GBoxAReaLEnv:
    env = GBoxAReaLEnv(environment, config)
    asyncio.run(env.reset(task(max_steps)))
    return env


def test_reset_gives_goal_and_screen() -> None:
    start = asyncio.run(GBoxAReaLEnv(ScriptedEnvironment(), CONFIG).reset(task()))
    assert start["task_description"] == "Turn Wi-Fi on"
    np.testing.assert_array_equal(start["observation"], pixels())
    worded = asyncio.run(GBoxAReaLEnv(ScriptedEnvironment(goal="Click OK"), CONFIG).reset(task()))
    assert worded["task_description"] == "Click OK"


def test_a_turn_is_carried_out_where_the_element_is() -> None:
    world = ScriptedEnvironment(elements={"Wi-Fi": Point(30, 40)})
    step = asyncio.run(started(world).step(render_tool_call(Tap(Target("Wi-Fi")))))
    assert world.actions == [Tap(Point(30, 40))]
    assert (step["reward"], step["done"]) == (0.0, False)
    assert step["info"] == {"text": "", "action": "tap target=Wi-Fi", "outcome": None}
    np.testing.assert_array_equal(step["observation"], pixels(1))


def test_positions_are_read_as_the_models_family_writes_them(tmp_path: Path) -> None:
    """Screens of 8 by 12 pixels are resized to 28 by 56 for this Qwen2.5-VL: (14, 42) is half and three quarters."""
    model = ModelConfig(path=str(tiny_random.build(tmp_path, "qwen2_5_vl")), grounding="coordinates")
    call = '<tool_call>{"name": "perform_action", "arguments": {"action": "tap", "coordinate": [14, 42]}}</tool_call>'
    world = ScriptedEnvironment()
    asyncio.run(started(world, TrainConfig(model=model)).step(call))
    (tap,) = world.actions
    assert isinstance(tap, Tap) and isinstance(tap.at, Point) and tap.at.to_pixels(8, 12) == (4, 9)


@pytest.mark.parametrize(
    ("turn", "answer", "action"),
    [
        ("nonsense", "error: expected exactly one <tool_call>, found none", None),
        (Tap(Target("Nowhere")), 'error: no element called "Nowhere"', "tap target=Nowhere"),
    ],
)
def test_a_turn_that_means_nothing_costs_the_turn(turn: Any, answer: str, action: str | None) -> None:
    world = ScriptedEnvironment()
    env = started(world, max_steps=2)
    step = asyncio.run(env.step(turn))
    assert step["info"] == {"text": answer, "action": action, "outcome": None}
    assert world.actions == []
    assert not step["done"]
    assert asyncio.run(env.step(HOME))["info"]["outcome"] == Outcome.OUT_OF_TURNS


@pytest.mark.parametrize(
    ("turn", "score", "world_done", "outcome", "reward"),
    [
        (DONE, 1.0, False, Outcome.SUCCESS, 2.0),
        (DONE, 0.9, False, Outcome.FALSE_CLAIM, -1.0),
        (HOME, 1.0, True, Outcome.SUCCESS, 2.0),
        (HOME, 0.0, True, Outcome.FAILURE, -0.5),
        (HOME, 1.0, False, Outcome.OUT_OF_TURNS, -0.25),
    ],
)
def test_every_end_has_the_reward_of_the_agent_loop(
    turn: Any, score: float, world_done: bool, outcome: Outcome, reward: float
) -> None:
    ended = StepResult(Observation(screenshot()), done=world_done)
    world = ScriptedEnvironment(score=score, behaviour=lambda _: ended)
    env = started(world, max_steps=1)
    step = asyncio.run(env.step(turn))
    assert (step["done"], step["reward"], step["info"]["outcome"]) == (True, reward, outcome)
    assert asyncio.run(env.compute_reward([step])) == reward
    with pytest.raises(RuntimeError, match="call reset"):
        asyncio.run(env.step(HOME))
    asyncio.run(env.reset(task()))
    assert asyncio.run(env.step(TypeText("again")))["done"] == world_done


def test_the_configuration_bounds_turns_too() -> None:
    env = started(ScriptedEnvironment(), replace(CONFIG, rollout=RolloutConfig(max_turns=2)))
    assert [asyncio.run(env.step(HOME))["done"] for _ in range(2)] == [False, True]


def test_a_broken_world_ends_the_episode_without_a_reward() -> None:
    def breaks(_: object) -> StepResult:
        raise EnvironmentFailure("the box died")

    env = started(ScriptedEnvironment(score=1.0, behaviour=breaks))
    with pytest.raises(EnvironmentFailure):
        asyncio.run(env.step(HOME))
    for call in (env.step(HOME), env.compute_reward()):
        with pytest.raises(RuntimeError, match="call reset"):
            asyncio.run(call)


def test_a_real_phone_in_pixels_and_in_words() -> None:
    goal = get_training_tasks("pocket")[0]
    seen = asyncio.run(GBoxAReaLEnv(PocketEnvironment(), CONFIG).reset(goal, 3))["observation"]
    assert isinstance(seen, np.ndarray)
    assert (seen.shape, seen.dtype) == ((224, 128, 3), np.uint8)
    in_words = replace(CONFIG, model=ModelConfig(observation="text"))
    words = asyncio.run(GBoxAReaLEnv(PocketEnvironment(), in_words).reset(goal, 3))["observation"]
    assert isinstance(words, str)
    assert ":" in words


def documented(name: str) -> Any:
    """A class of the first Python block of the guide."""
    block = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    namespace: dict[str, Any] = {}
    exec(compile(block, str(GUIDE), "exec"), namespace)
    return namespace[name]


@pytest.mark.slow
def test_a_workflow_of_ones_own_plays_what_ours_plays(tmp_path: Path) -> None:
    """On AReaL's executor, with the built-in model, decoding greedily: every token, mask and reward."""
    pytest.importorskip("areal")
    from trainers.areal.process import prepare_process
    from trainers.areal.rollout.rollout_worker import RolloutWorker
    from trainers.areal.tensors import rows_to_tensors
    from trainers.components import build_components
    from trainers.config.compose import load_config
    from trainers.protocol import EpisodeSpec

    prepare_process(tmp_path)
    config = load_config(["experiment=quick", "rollout.greedy=true", "rollout.max_turns=6", "threads=1"])
    components = build_components(config)
    data = [{"name": t.id, "task": t, "seed": seed_for("train", n)} for n, t in enumerate(components.train_tasks[::2])]
    worker = RolloutWorker(config, components, tmp_path, components.policy)
    worker.engine.initialize(train_data_parallel_size=1)
    worker.open()
    try:
        workflow = documented("OneEpisode")(config, components.policy, worker.environments)
        theirs = worker.engine.rollout_batch(data, workflow)
    finally:
        worker.close()

    async def ours() -> list[Any]:
        from cua_agent.inference.local import LocalEngine

        run = components.runner_for(LocalEngine(components.policy, max_batch=4))
        async with components.environments() as new_environment:
            phone = await new_environment()
            return [await run(phone, EpisodeSpec(d["task"], d["seed"], d["name"], d["name"])) for d in data]

    expected = {
        tuple(tensors["input_ids"][0].tolist()): (tensors["loss_mask"].tolist(), float(tensors["rewards"]))
        for tensors in (rows_to_tensors(components.policy, rows) for rows in asyncio.run(ours()))
    }
    assert len(theirs) == len(data) > 3
    assert {
        tuple(one["input_ids"][0].tolist()): (one["loss_mask"].tolist(), float(one["rewards"])) for one in theirs
    } == expected
    assert {0.0, 1.0} == {reward for _, reward in expected.values()}
