"""A world of coloured 64x64 squares and hand-made episodes: what trainer tests need, without a model or a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from cua_agent.actions import Action, Point
from cua_agent.envs.base import EnvironmentFailure, Observation, StepResult
from cua_agent.tasks import CUATask, Probe
from cua_agent.trajectory import Outcome, Trajectory, Turn

COLOURS = ("red", "green", "blue", "yellow")


class Always:
    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return 1.0


def toy_task(name: str = "tap", category: str = "toy") -> CUATask:
    return CUATask(name, name, f"{name} it", "easy", category, 2, Always())


class SquareEnvironment:
    """Shows one colour, chosen by the seed; breaks on its `breaks_at`-th reset."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.resets = 0
        self.closed = False
        self._breaks_at = breaks_at

    async def reset(self, task: CUATask, seed: int) -> Observation:
        self.resets += 1
        if self.resets == self._breaks_at:
            raise EnvironmentFailure("the box died")
        return Observation(Image.new("RGB", (64, 64), COLOURS[seed % len(COLOURS)]))

    async def step(self, action: Action) -> StepResult:
        return StepResult(Observation(Image.new("RGB", (64, 64), "black")), done=True)

    async def locate(self, target: str) -> Point | None:
        return Point(500, 500) if target in COLOURS else None

    async def compute_reward(self) -> float:
        return 1.0

    async def close(self) -> None:
        self.closed = True


def trajectory(
    reward: float = 0.0,
    *,
    outcome: Outcome | None = None,
    group_id: str = "g",
    episode_id: str = "e",
    seed: int = 0,
    ids: Sequence[int] = (1, 2, 3),
    turns: int = 1,
) -> Trajectory:
    """A row whose last token was sampled with probability 1 by version 0."""
    n = len(ids)
    mask = np.zeros(n, np.int32)
    mask[-1] = 1
    return Trajectory(
        input_ids=np.asarray(ids, np.int64),
        loss_mask=mask,
        logprobs=np.zeros(n, np.float32),
        versions=np.where(mask == 1, 0, -1).astype(np.int32),
        images=[],
        reward=reward,
        outcome=outcome or (Outcome.SUCCESS if reward > 0.5 else Outcome.FAILURE),
        task_id="tap",
        group_id=group_id,
        episode_id=episode_id,
        seed=seed,
        turns=tuple(Turn("", None, "", 0.0, 0.0) for _ in range(turns)),
    )
