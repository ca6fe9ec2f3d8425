"""`GBoxAReaLEnv`: an environment for AReaL workflows of one's own; AReaL itself has no class for environments."""

from __future__ import annotations

import time
from typing import TypedDict

from cua_agent.acting import Effect, act
from cua_agent.actions import Action, Space
from cua_agent.agent import screen_of, side_effects_of
from cua_agent.conversation import Screen
from cua_agent.envs.base import Environment, Observation
from cua_agent.envs.guard import BlockingEnvironment, GuardedEnvironment
from cua_agent.models.pixels import coordinate_space, image_processor
from cua_agent.models.sources import find_model
from cua_agent.parsing import describe
from cua_agent.rewards import checked_score, outcome_of, reward_of
from cua_agent.tasks import CUATask, seed_for
from cua_agent.trajectory import Outcome, Turn
from trainers.components import agent_config
from trainers.config import TrainConfig


class Start(TypedDict):
    """The goal in words, and the first screen: uint8 [H, W, 3], or words with `model.observation=text`."""

    task_description: str
    observation: Screen


class Info(TypedDict):
    """The answer to the model (an error, or empty: all is well), the action that its turn meant (None: malformed), and
    how the episode ended (None: it goes on)."""

    text: str
    action: str | None
    outcome: Outcome | None


class Step(TypedDict):
    """The next screen, the reward (0 until the episode is over), and whether it is."""

    observation: Screen
    reward: float
    done: bool
    info: Info


class GBoxAReaLEnv:
    """Episodes on one `environment`, as the agent loop plays them: same actions, same end, same reward.

    `config` says how elements are named (`model.grounding`), what is shown (`model.observation`), how long an episode
    may be (`rollout.max_turns`, and the task's own `max_steps`), how long a call may take (`env.timeout_s`) and what an
    outcome is worth (`reward`). An environment whose methods are plain functions is called in a thread. One episode at
    a time. Every method may raise `EnvironmentFailure`: then the episode is lost, and no reward of 0.
    """

    def __init__(self, environment: Environment | BlockingEnvironment, config: TrainConfig) -> None:
        self._environment = GuardedEnvironment(environment, config.env.timeout_s)
        self._how = agent_config(config)
        self._model = config.model
        self._worth = config.reward
        self._turns_left = 0
        self._task: CUATask | None = None
        self._turns: list[Turn] = []
        self._effect: Effect | None = None

    async def reset(self, task: CUATask, seed: int | None = None) -> Start:
        """Start `task` in the world that `seed` determines; without it always in the same one. Raises
        `NoDescription`."""
        self._effect = None
        seen = await self._environment.reset(task, seed_for("train", 0) if seed is None else seed)
        self._effect, self._turns_left = Effect(seen), min(task.max_steps, self._how.max_turns)
        self._task, self._turns = task, []
        goal = seen.text or task.description
        return Start(task_description=goal, observation=screen_of(seen, self._how.observation))

    async def step(self, action: Action | str) -> Step:
        """Carry out an action, or what the model wrote: a malformed call, or an unknown element, costs the turn.

        Raises `RuntimeError` when no episode is running.
        """
        if self._effect is None or self._done:
            raise RuntimeError("no episode is running; call reset")
        started = time.monotonic()
        seen, self._effect = self._effect.observation, None  # until the world has answered, there is no episode
        space = self._space(seen) if isinstance(action, str) else None
        effect = self._effect = await act(self._environment, action, seen, self._how.grounding, space)
        self._turns_left -= 1
        self._turns.append(_turn(action, effect, time.monotonic() - started))
        outcome, reward = await self._verdict() if self._done else (None, 0.0)
        return Step(
            observation=screen_of(effect.observation, self._how.observation),
            reward=reward,
            done=self._done,
            info=Info(
                text=effect.observation.text,
                action=None if effect.action is None else describe(effect.action),
                outcome=outcome,
            ),
        )

    async def compute_reward(self, trajectory: object = None) -> float:  # noqa: ARG002 - the guide's signature
        """What the episode is worth if it ends here. The task's validator reads it from the state of the device,
        whatever `trajectory` says. Raises `RuntimeError` before the first `reset`."""
        return (await self._verdict())[1]

    def _space(self, seen: Observation) -> Space | None:
        """What the positions that the model writes are measured in."""
        source = find_model(self._model.path)
        coordinates = self._model.coordinates or source.family.coordinates
        if coordinates != "absolute" or source.family.image is None:
            return None
        width, height = seen.screenshot.size
        return coordinate_space(image_processor(source.location, source.family.image), coordinates, height, width)

    @property
    def _done(self) -> bool:
        return self._effect is None or self._effect.over or self._turns_left == 0

    async def _verdict(self) -> tuple[Outcome, float]:
        if self._effect is None or self._task is None:
            raise RuntimeError("no episode has started; call reset")
        score = checked_score(await self._environment.compute_reward(), self._task)
        outcome = outcome_of(score, claimed=self._effect.claimed, world_done=self._effect.world_done)
        side_effects = await side_effects_of(self._environment, self._worth)
        return outcome, reward_of(outcome, score, self._worth, self._turns, self._task, side_effects)


def _turn(action: Action | str, effect: Effect, env_s: float) -> Turn:
    """The record of a turn; how long the model took for it is not known here."""
    meant = None if effect.action is None else describe(effect.action)
    text = action if isinstance(action, str) else describe(action)
    return Turn(text=text, action=meant, result=effect.observation.text, generate_s=0.0, env_s=env_s)
