"""One turn's effect on the world: what the model wrote, or an action, carried out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from cua_agent.actions import Action, Point, ReportTaskComplete, Space, Target
from cua_agent.envs.base import Environment, HearsReports, Observation
from cua_agent.parsing import Malformed, parse_tool_call
from cua_agent.prompts import Grounding

_SHOWN_NAME = 60
"""How much of an unknown element's name an error repeats, in characters."""


@dataclass(frozen=True)
class Effect:
    """What a turn did: the action as it was meant and as the environment executed it (None: it meant nothing, or could
    not be executed), and what is seen now, with a short error as its text when nothing was done.

    `claimed`: the agent reported completion. `world_done`: the environment ended the episode by itself.
    """

    observation: Observation
    action: Action | None = None
    executed: Action | None = None
    claimed: bool = False
    world_done: bool = False

    @property
    def over(self) -> bool:
        """Whether the episode ends with this turn."""
        return self.claimed or self.world_done


async def act(
    environment: Environment,
    turn: str | Action,
    seen: Observation,
    grounding: Grounding,
    space: Space | None = None,
    *,
    truncated: bool = False,
) -> Effect:
    """Do what a turn says: the model's text, or an action. One that means nothing leaves the screen `seen` as it is.
    For `space` and `truncated` see `parse_tool_call`.

    Raises `EnvironmentFailure`, and nothing for what a model may write.
    """
    action = parse_tool_call(turn, space, truncated=truncated) if isinstance(turn, str) else turn
    if isinstance(action, Malformed):
        return Effect(replace(seen, text=f"error: {action.error}"))
    if isinstance(action, ReportTaskComplete):
        if isinstance(environment, HearsReports):
            await environment.report(action.message)
        return Effect(replace(seen, text=""), action, action, claimed=True)
    try:
        executed = await _ground(environment, action, grounding)
    except _Ungrounded as error:
        return Effect(replace(seen, text=f"error: {error}"), action)
    result = await environment.step(executed)
    return Effect(result.observation, action, executed, world_done=result.done)


async def _ground(environment: Environment, action: Action, grounding: Grounding) -> Action:
    """`action` with the point of every element that it names."""
    named = {f.name: getattr(action, f.name) for f in fields(action)}
    points: dict[str, Point] = {}
    for name, target in named.items():
        if not isinstance(target, Target):
            continue
        if grounding == "coordinates":
            raise _Ungrounded('give "coordinate"; elements cannot be named here')
        point = await environment.locate(target.name)
        if point is None:
            raise _Ungrounded(f'no element called "{target.name[:_SHOWN_NAME]}"')
        points[name] = point
    return replace(action, **points)  # type: ignore[arg-type]


class _Ungrounded(Exception):  # noqa: N818 (a normal event of an episode)
    """A named element has no place on the screen."""
