"""A small gymnasium environment, `tests.gymnasium_doors:Doors-v0`: one of two doors is green, and is to be opened."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from cua_agent import actions
from cua_agent.actions import Action

SIZE = 64
GREEN, GREY = (0, 160, 0), (128, 128, 128)


class Doors(gymnasium.Env[Any, Any]):
    """Action 0 opens the left door, 1 the right one, 2 waits: a cent is lost. `trouble`: what its third step does."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own name)
    action_space = spaces.Discrete(3)
    observation_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, trouble: str | None = None) -> None:
        self.render_mode = render_mode
        self._trouble = trouble
        self._green = self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._green, self._steps = int(self.np_random.integers(2)), 0
        return self._green, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == 3 and self._trouble == "hangs":
            time.sleep(3600)
        if self._steps == 3 and self._trouble == "breaks":
            raise RuntimeError("the doors fell off")
        if action == 2:
            return self._green, -0.01, False, False, {}
        return self._green, float(action == self._green), True, False, {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return "two doors"
        picture = np.full((SIZE, 2 * SIZE, 3), GREY, np.uint8)
        picture[:, self._green * SIZE : (self._green + 1) * SIZE] = GREEN
        return picture


gymnasium.register("Doors-v0", entry_point=Doors)


def by_typing(action: Action) -> int | None:
    """A mapping of one's own: the side is typed."""
    return {"left": 0, "right": 1}.get(action.text) if isinstance(action, actions.TypeText) else None
