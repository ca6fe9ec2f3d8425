"""Evaluations on AReaL's loop: what training rollouts may do meanwhile."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cua_agent.envs.pool import EnvironmentPool
from cua_agent.tasks import CUATask
from trainers.areal.rollout.evaluation_player import EvaluationPlayer
from trainers.config import EnvConfig
from trainers.protocol import EpisodeSpec
from trainers.rollouts.task_sampler import training_tasks


class Engine:
    """Notes when training groups may start."""

    def __init__(self, *, paused: bool = False) -> None:
        self.seen: list[str] = []
        self.workflow_executor = SimpleNamespace(is_paused=lambda: paused)

    def pause(self) -> None:
        self.seen.append("pause")

    def resume(self) -> None:
        self.seen.append("resume")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)


def evaluate(engine: Engine, task: CUATask, *, fails: str | None = None) -> None:
    """Three episodes on two environments."""

    async def environment() -> Any:
        async def close() -> None: ...

        return SimpleNamespace(close=close)

    async def pool() -> EnvironmentPool:
        return EnvironmentPool(environment, 2)

    async def run(_: Any, spec: EpisodeSpec) -> list[Any]:
        engine.seen.append(f"{spec.episode_id} begins")
        await asyncio.sleep(0)
        if spec.episode_id == fails:
            raise RuntimeError("broken")
        engine.seen.append(f"{spec.episode_id} ends")
        return []

    components = cast(Any, SimpleNamespace(runner_for=lambda _: run))
    player = EvaluationPlayer(components, cast(Any, engine), cast(Any, SimpleNamespace(pool=pool)), retries=0)
    player.play([EpisodeSpec(task, number, "eval", f"{number}") for number in range(3)], lambda *_: None)


@pytest.fixture
def task() -> CUATask:
    return training_tasks(EnvConfig())[0]


def test_training_groups_start_when_the_last_evaluation_episode_has_an_environment(task: CUATask) -> None:
    engine = Engine()
    evaluate(engine, task)
    assert engine.seen[0] == "pause"
    begun = engine.seen.index("resume")
    assert engine.seen[begun + 1] == "2 begins"
    assert {"0 begins", "1 begins"} < set(engine.seen[:begun])
    assert "2 ends" in engine.seen[begun:]


def test_training_groups_start_after_an_evaluation_that_broke(task: CUATask) -> None:
    engine = Engine()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(engine, task, fails="0")
    assert engine.seen[-1] == "resume"


def test_an_engine_that_was_paused_stays_so(task: CUATask) -> None:
    engine = Engine(paused=True)
    evaluate(engine, task)
    assert "resume" not in engine.seen
