"""What a world hands over: its options, its tasks, and how its environments are opened."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from cua_agent.envs.guard import AnyFactory
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.tasks import CUATask, EvalSplit


@runtime_checkable
class World(Protocol):
    """A world is a frozen pydantic dataclass: its fields are its options (`env.args`), with their types, bounds,
    defaults and descriptions. Making one is cheap and touches nothing; processes make their own from the same options.

    Four names may be added. An option called `run` that is None takes the name of the run directory, to label what a
    run shares with others. `PRACTICAL`, a class attribute, is a set of options that change nothing of what the agent is
    shown: a run that is resumed with another value of them keeps its best evaluation. A world whose environments
    describe their screens in words says so with a class attribute `DESCRIBES_SCREENS = True`, one whose
    environments are `Forkable` with `FORKS = True`.
    """

    def check(self) -> None:
        """Raise `WorldUnavailable`, one line, when something that the world needs is missing. Asked before anything
        heavy is loaded, so it is quick."""
        ...

    def open(self) -> AbstractAsyncContextManager[AnyFactory]:
        """What starts one environment after the other; what they share (a browser, a device farm) lives as long as
        this, on one event loop. Entering it may raise `WorldUnavailable`. An environment whose methods are plain
        functions is called in a thread of its own."""
        ...

    def training_tasks(self) -> list[CUATask]:
        """The tasks that training draws from; the same ones in every process."""
        ...

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """Held-out tasks: for `seeds` the goals of training, played on unseen seeds; for `templates` wordings and goals
        that training never shows (an empty list: those of `seeds` stand for them)."""
        ...


@runtime_checkable
class Mixture(Protocol):
    """A world that is made of others, whose calls are bounded one by one."""

    def open_within(self, timeout_s: float) -> AbstractAsyncContextManager[EnvironmentFactory]:
        """As `World.open`; no call of an environment takes longer than `timeout_s`."""
        ...
