"""Demonstrations on the simulated phone: the real agent loop, with an expert in the place of the model.

What comes out are ordinary trajectories in exactly the format that training and rollouts use.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cua_agent.actions import (
    COORDINATE_MAX,
    Action,
    Direction,
    Point,
    ReportTaskComplete,
    Scroll,
    Tap,
    Target,
    TypeText,
)
from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.conversation import Codec
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.envs.pocket.screens import elements
from cua_agent.envs.pocket.state import APPS, SETTINGS_ROWS
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.parsing import render_tool_call
from cua_agent.prompts import END_OF_TURN, Grounding
from cua_agent.tasks import CUATask
from cua_agent.trajectory import NO_VERSION, Trajectory

_CLEAR_UP_TURNS = 4  # turns that an episode may last beyond its task's bound, to show recoveries


@dataclass(frozen=True)
class Noise:
    """How the expert errs. `explore`: probability of a wrong action that is executed but not to be imitated, so that
    recoveries are shown. `mistake`: probability of one that is to be imitated, which makes a mediocre clone."""

    explore: float = 0.0
    mistake: float = 0.0


class ExpertEngine:
    """An `InferenceEngine` that answers with the expert's next call, which names elements or, with
    `grounding=coordinates`, gives their positions as `codec` writes them. Explored turns have version `NO_VERSION`."""

    version = 0

    def __init__(
        self,
        codec: Codec,
        environment: PocketEnvironment,
        noise: Noise,
        rng: random.Random,
        grounding: Grounding = "target",
    ) -> None:
        self._codec = codec
        self._environment = environment
        self._noise = noise
        self._rng = rng
        self._grounding = grounding
        self._expert: Expert | None = None

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        environment = self._environment
        if self._expert is None:
            self._expert = Expert(environment.task.validation, environment.before)
        action, version = self._expert.action(environment.state), self.version
        chance = self._rng.random()
        if chance < self._noise.mistake:
            action = self._wrong_action(may_report=True)
        elif chance < self._noise.mistake + self._noise.explore:
            action, version = self._wrong_action(may_report=False), NO_VERSION
        ids = self._codec.encode(await self._written(action, request) + END_OF_TURN)
        return GenerateResponse(ids, [0.0] * len(ids), [version] * len(ids), "stop")

    def release(self, conversation_id: str) -> None:
        del conversation_id

    def update_weights(self, version: int) -> None:
        raise NotImplementedError("an expert does not learn")

    async def close(self) -> None:
        return None

    async def _written(self, action: Action, request: GenerateRequest) -> str:
        """The call, about the screen that `request` ends with."""
        if self._grounding == "target":
            return render_tool_call(action)
        if isinstance(action, Tap | TypeText) and isinstance(action.at, Target):
            point = await self._environment.locate(action.at.name)  # None for a mistake that names what is not there
            action = replace(action, at=point or Point(*(self._rng.randint(0, COORDINATE_MAX) for _ in "xy")))
        height, width = request.images[-1].shape[:2] if request.images else (0, 0)
        return render_tool_call(action, self._codec.coordinate_space(height, width))

    def _wrong_action(self, *, may_report: bool) -> Action:
        """A plausible mistake: any visible element, one that is not there, a scroll, or a premature report."""
        kind = self._rng.random()
        if may_report and kind < 0.2:
            return ReportTaskComplete()
        if kind < 0.3:
            return Scroll(self._rng.choice((Direction.UP, Direction.DOWN)))
        if kind < 0.4:
            return Tap(Target(self._rng.choice((*APPS, *SETTINGS_ROWS))))
        return Tap(Target(self._rng.choice(elements(self._environment.state)).name))


async def demonstrate(
    codec: Codec,
    task: CUATask,
    seed: int,
    noise: Noise,
    rng: random.Random,
    agent: AgentConfig = AgentConfig(),  # noqa: B008 - it is frozen
    phone: PocketEnvironment | None = None,
) -> Trajectory:
    """One episode of the expert on `phone` as a single token row, spoken to as `agent` says; `versions` tells explored
    turns (-1) from the others (0)."""
    environment = phone or PocketEnvironment()
    engine = ExpertEngine(codec, environment, noise, rng, agent.grounding)
    played = replace(agent, context="full", max_turns=task.max_steps + _CLEAR_UP_TURNS)
    player = StandaloneGBoxCUAAgent(codec, engine, environment, played)
    (row,) = await player.run_episode(task, seed, group_id="clone", episode_id=str(seed))
    return row


def balanced_task(tasks: Sequence[CUATask], rng: random.Random, extra: Sequence[str] = ()) -> CUATask:
    """A task of a category that is drawn evenly, however many tasks the categories have; `extra` are further lots."""
    category = rng.choice([*sorted({task.category for task in tasks}), *extra])
    return rng.choice([task for task in tasks if task.category == category])
