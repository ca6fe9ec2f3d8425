"""What an episode came through, and where another one can branch off it."""

from __future__ import annotations

from dataclasses import dataclass

from cua_agent.conversation import Conversation
from cua_agent.trajectory import Fork, Turn
from cua_agent.verdict import Verdict


@dataclass
class Trail:
    """What was said in an episode, its turns, and the `worlds` that these began in, as `Forkable.snapshot` gave
    them."""

    episode_id: str
    goal: str
    conversation: Conversation
    turns: list[Turn]
    worlds: list[object]
    verdict: Verdict


@dataclass(frozen=True)
class BranchPoint:
    """The beginning of turn `turn` (from 0) of an episode that left a `trail`."""

    trail: Trail
    turn: int

    @property
    def fork(self) -> Fork:
        """Its name."""
        return Fork(self.trail.episode_id, self.turn)

    @property
    def world(self) -> object:
        """The world at that moment."""
        return self.trail.worlds[self.turn]
