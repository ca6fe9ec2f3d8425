"""The environment protocol: one screen that an agent looks at and acts on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from cua_agent.actions import Action, Point
from cua_agent.tasks import CUATask
from cua_agent.touch import Place


class EnvironmentFailure(Exception):  # noqa: N818 (an event of the world, not a fault of the program)
    """The world broke (dead box, crashed browser, network): the episode is lost, not failed.

    An episode that ends with this is an `infra_error`: it is replaced and counted, never scored 0.
    """


class WorldUnavailable(ValueError):  # noqa: N818 (a state of the machine or of the configuration)
    """The world cannot be used here at all: no browser, no SDK, no key, no service. The message is one line."""


@dataclass(frozen=True)
class Observation:
    """What the agent sees after an action: an RGB screenshot and a short text (empty when all is well).

    `description` is the screen in words, for models without eyes; None where an environment cannot tell it. A
    `private` screen shows what no record of the episode may show. `state` is the same text whenever the world is in the
    same state, and another whenever it is not; None where an environment cannot tell. `places` is what can be touched,
    for records of the episode; None where telling it would cost something.
    """

    screenshot: Image.Image
    text: str = ""
    description: str | None = None
    private: bool = False
    state: str | None = None
    places: tuple[Place, ...] | None = None


@dataclass(frozen=True)
class StepResult:
    """Outcome of one action.

    `done` is True when the world itself ended the episode (MiniWoB++ does, a phone does not). `error` says why
    the action had no effect (None when it was executed); the same text is in `observation.text`.
    """

    observation: Observation
    done: bool = False
    error: str | None = None


@runtime_checkable
class TellsSideEffects(Protocol):
    """An environment that knows what an episode changed besides its goal; asked at its end for `reward`."""

    async def side_effects(self) -> int:
        """How many things are not as they should have been left."""
        ...


@runtime_checkable
class HearsReports(Protocol):
    """An environment that is told what the agent reports at the end, because the answer counts there."""

    async def report(self, message: str) -> None:
        """Take note of the agent's report; `compute_reward` is asked next."""
        ...


@runtime_checkable
class Forkable(Protocol):
    """An environment whose world can be copied in the midst of an episode; its `World` says so with `FORKS = True`."""

    async def snapshot(self) -> object:
        """The world as it is, which nothing that happens later changes."""
        ...

    async def restore(self, task: CUATask, snapshot: object) -> Observation:
        """Go on with `task` from there, in place of a `reset`; in this environment or in another one of its world."""
        ...


class Environment(Protocol):
    """One device or page. Not safe for concurrent episodes; every method may raise `EnvironmentFailure`."""

    async def reset(self, task: CUATask, seed: int) -> Observation:
        """Start `task` in the state that `seed` determines; the same pair always gives the same start."""
        ...

    async def step(self, action: Action) -> StepResult:
        """Execute an action whose locations are all `Point`s."""
        ...

    async def locate(self, target: str) -> Point | None:
        """The centre of the visible element called `target`, or None when there is none (grounding)."""
        ...

    async def compute_reward(self) -> float:
        """How well the task's goal holds in the present state, 0..1, read from the state, not from pixels."""
        ...

    async def close(self) -> None:
        """Release the device or page; safe to call twice."""
        ...
