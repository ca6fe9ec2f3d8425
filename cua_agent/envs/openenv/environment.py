"""`OpenEnvEnvironment`: one session of an OpenEnv server behind the environment protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from openenv.core.generic_client import GenericEnvClient

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.openenv.mapping import NoMeaning, at_path, picture, server_actions
from cua_agent.error_text import first_line
from cua_agent.tasks import CUATask

if TYPE_CHECKING:
    from PIL import Image

    from cua_agent.envs.openenv.settings import OpenEnvSettings

EPISODE_OVER = "the episode is over"
_NO_LIMIT_S = 86_400.0
"""Calls are bounded by `env.timeout_s`."""


class OpenEnvEnvironment:
    """One session. Whatever its client raises costs the episode, and so does a connection that broke: the client would
    open another one on its own, with a new session that knows nothing of the episode."""

    def __init__(self, client: GenericEnvClient, settings: OpenEnvSettings) -> None:
        self._client = client
        self._settings = settings
        self._connection: Any = None
        self._screen: Image.Image | None = None
        self._sum = 0.0
        self._over = False

    @classmethod
    async def open(cls, settings: OpenEnvSettings) -> OpenEnvEnvironment:
        """Connect. Raises `EnvironmentFailure`."""
        client = GenericEnvClient(settings.base_url, message_timeout_s=_NO_LIMIT_S, mode="simulation")
        environment = cls(client, settings)
        await environment._reported("connect", client.connect)
        return environment

    async def reset(self, task: CUATask, seed: int) -> Observation:
        arguments = self._settings.resets[task.name]
        result = await self._reported("reset", lambda: self._client.reset(seed=seed, **arguments))
        self._connection, self._sum, self._screen = self._client._ws, 0.0, None
        goal = self._text(result, self._settings.goal_field)
        return self._look(result, goal)

    async def step(self, action: Action) -> StepResult:
        if self._screen is None:
            raise RuntimeError("reset the environment first")
        error: str | None = None
        observation = Observation(self._screen)
        try:
            calls = [] if self._over else server_actions(action, self._screen.size, self._settings.actions)
            error = EPISODE_OVER if self._over else None
        except NoMeaning as reason:
            calls, error = [], str(reason)
        for call in calls:
            result = await self._reported("step", partial(self._client.step, call))
            if self._client._ws is not self._connection:
                raise EnvironmentFailure("step: the connection broke, and the server's session with it")
            error = self._text(result, self._settings.error_field) or None
            observation = self._look(result, "")
            if self._over or error:
                break
        return StepResult(Observation(observation.screenshot, error or ""), self._over, error)

    async def locate(self, target: str) -> Point | None:  # noqa: ARG002 (a server names nothing)
        return None

    async def compute_reward(self) -> float:
        """Where the sum of the rewards lies between those that score 0 and 1."""
        worst, best = self._settings.returns
        return min(max((self._sum - worst) / (best - worst), 0.0), 1.0)

    async def close(self) -> None:
        await self._client.close()

    def _look(self, result: Any, text: str) -> Observation:
        self._sum += float(result.reward or 0.0)
        self._over = bool(result.done)
        try:
            self._screen = picture(at_path(result.observation, self._settings.screenshot))
        except ValueError as error:
            raise EnvironmentFailure(f"env.args.screenshot={self._settings.screenshot}: {error}") from error
        return Observation(self._screen, text)

    def _text(self, result: Any, path: str | None) -> str:
        value = at_path(result.observation, path) if path else None
        return value.strip() if isinstance(value, str) else ""

    async def _reported(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except Exception as error:  # the client raises what its libraries do
            raise EnvironmentFailure(f"{what}: {first_line(error)[:200]}") from error
