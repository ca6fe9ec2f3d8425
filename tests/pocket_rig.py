"""Playing on the simulated phone without a model: hand-made states, grounding and episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cua_agent.actions import Action, Target
from cua_agent.envs.base import StepResult
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.state import PhoneState, make_state
from cua_agent.tasks import CUATask, Probe, Validator


class Nothing:
    """A validator without an opinion."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:
        return 0.0


def task(validation: Validator | None = None) -> CUATask:
    return CUATask("any", "any", "Do something.", "easy", "any", 9, validation or Nothing())


def phone(screen: str = "home", seed: int = 0, **changes: Any) -> PhoneState:
    """A seed's phone on `screen`, without dialogs, with the given fields changed."""
    state = replace(make_state(seed, "shuffled"), screen=screen, dialog=None, pending_dialog=None, actions=0)
    return replace(state, **changes)


def environment_in(state: PhoneState, **options: Any) -> PocketEnvironment:
    """An environment in the middle of an episode, in the given state."""
    environment = PocketEnvironment(**options)
    asyncio.run(environment.reset(task(), 0))
    environment._state = state
    return environment


async def perform(environment: PocketEnvironment, action: Action) -> StepResult | None:
    """Ground and execute an action as the agent loop does; None when an element that it names is not there."""
    points = {}
    for field in fields(action):
        value = getattr(action, field.name)
        if isinstance(value, Target):
            points[field.name] = await environment.locate(value.name)
    if None in points.values():
        return None
    return await environment.step(replace(action, **points))
