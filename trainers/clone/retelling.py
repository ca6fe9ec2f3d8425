"""Episodes that somebody else played, told to and said by the model that is to imitate them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cua_agent.agent import AgentConfig, screen_of
from cua_agent.cloning.example import Example, as_example
from cua_agent.conversation import Codec, Conversation, EpisodeInfo
from cua_agent.envs.base import Observation
from cua_agent.inference.base import GenerateResponse
from cua_agent.prompts import END_OF_TURN, system_prompt
from cua_agent.trajectory import NO_VERSION, Outcome


@dataclass(frozen=True)
class Said:
    """One turn: the screen that was looked at, the text that was said, the result that came back, and the action as
    text (None: it was no legal call)."""

    screen: Image.Image
    text: str
    result: str
    action: str | None


def retold(goal: str, turns: Sequence[Said], codec: Codec, agent: AgentConfig) -> list[Example]:
    """The episode as the model of `codec` would have seen and said it, spoken to as `agent` says; none where that does
    not fit. Turns that were no legal call are shown, not imitated."""
    system = system_prompt(agent.prompt, agent.grounding, codec.coordinates or "relative")
    conversation = Conversation(codec, system, "full", 1)
    result = ""
    for place, turn in enumerate(turns):
        screen = screen_of(Observation(turn.screen, result), agent.observation)
        if place:
            conversation.observe(result, screen)
        else:
            conversation.start(goal, screen)
        ids = codec.encode(turn.text + END_OF_TURN)
        version = NO_VERSION if turn.action is None else 0
        conversation.add_response(GenerateResponse(ids, [0.0] * len(ids), [version] * len(ids), "stop"))
        result = turn.result
    info = EpisodeInfo(1.0, Outcome.SUCCESS, "", "retold", "retold", 0)
    (example,) = (as_example(each) for each in conversation.to_trajectories(info, []))
    return [example] if len(example.input_ids) <= agent.max_length and np.any(example.labels) else []
