"""A gymnasium environment behind the environment protocol; plain functions, so that it has a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.envs.gymnasium.mapping import NoMeaning
from cua_agent.error_text import type_and_line
from cua_agent.tasks import CUATask

EPISODE_OVER = "the episode is over"


class NotPlayable(ValueError):  # noqa: N818 (a state of the configuration)
    """The environment cannot be made, shows no pixels, or does not take an action; the message is one line."""


class GymnasiumEnvironment:
    """One gymnasium environment.

    Args:
        env: as `make` makes it.
        mapping: the environment's action for one of the agent's; None: it stays as it is. Raises `NoMeaning`.
        locate: the point of what has a name on the screen, or None.
        returns: the sums of rewards that score 0 and 1.
        repeat: how often the environment takes an action before the next screenshot.

    Whatever the environment raises costs the episode.
    """

    def __init__(
        self,
        env: Any,
        mapping: Callable[[Action], Any],
        locate: Callable[[str], Point | None],
        returns: tuple[float, float] = (0.0, 1.0),
        repeat: int = 1,
    ) -> None:
        self._env = env
        self._mapping = mapping
        self._locate = locate
        self._returns = returns
        self._repeat = repeat
        self._sum = 0.0
        self._over = False

    def reset(self, task: CUATask, seed: int) -> Observation:  # noqa: ARG002 (there is one task)
        with reported("reset"):
            self._env.reset(seed=seed)
            self._sum, self._over = 0.0, False
            return Observation(picture(self._env))

    def step(self, action: Action) -> StepResult:
        error: str | None = EPISODE_OVER if self._over else None
        with reported("step"):
            try:
                taken = None if self._over else self._mapping(action)
                if taken is not None:
                    self._take(in_space(self._env.action_space, taken))
            except NoMeaning as reason:
                error = str(reason)
            return StepResult(Observation(picture(self._env), error or ""), self._over, error)

    def _take(self, action: Any) -> None:
        for _ in range(self._repeat):
            _, reward, terminated, truncated, _ = self._env.step(action)
            self._sum += float(reward)
            self._over = bool(terminated or truncated)
            if self._over:
                return

    def locate(self, target: str) -> Point | None:
        return self._locate(target)

    def compute_reward(self) -> float:
        """Where the sum of the rewards lies between those that score 0 and 1."""
        worst, best = self._returns
        return min(max((self._sum - worst) / (best - worst), 0.0), 1.0)

    def close(self) -> None:
        self._env.close()


def make(identifier: str, arguments: Mapping[str, Any]) -> Any:
    """The environment `identifier`, as `gymnasium.make` understands it, rendering arrays. Raises `NotPlayable`."""
    import gymnasium

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into arrays: it looks for no display
    try:
        return gymnasium.make(identifier, render_mode="rgb_array", disable_env_checker=True, **arguments)
    except Exception as error:
        raise NotPlayable(type_and_line(error)) from error


def picture(env: Any) -> Image.Image:
    """The screen, RGB. Raises `NotPlayable`."""
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise NotPlayable(f"it renders no RGB picture (uint8 [height, width, 3]) but {type(frame).__name__}")
    return Image.fromarray(frame)


def in_space(space: Any, action: Any) -> Any:
    """`action`, of plain data or as a mapping of one's own gave it, as the space has it. Raises `NotPlayable`."""
    dtype, shape = getattr(space, "dtype", None), getattr(space, "shape", None)
    try:
        value = np.asarray(action, dtype).reshape(shape) if dtype is not None and shape else action
    except (TypeError, ValueError) as error:
        raise NotPlayable(f"{action!r} is no action of {space}") from error
    if not space.contains(value):
        raise NotPlayable(f"{action!r} is no action of {space}")
    return value


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Whatever is raised inside becomes `EnvironmentFailure`."""
    try:
        yield
    except Exception as error:
        raise EnvironmentFailure(f"{what}: {type_and_line(error)}") from error
