"""Conversations in words, sampled by the engine in this process from a model without eyes."""

from __future__ import annotations

import asyncio

from cua_agent.conversation import Conversation, EpisodeInfo
from cua_agent.inference.base import GenerateRequest
from cua_agent.inference.local import LocalEngine
from cua_agent.models.policy import PolicyModel
from cua_agent.trajectory import Outcome, Trajectory


def sampled_rows(policy: PolicyModel, answers: int = 3, episodes: int = 4) -> list[Trajectory]:
    """Rows of different lengths that the engine served together, `answers` turns each."""

    async def episode(engine: LocalEngine, number: int) -> Trajectory:
        conversation = Conversation(policy, "S")
        conversation.start("goal", "Home: " + "Mail, " * number)
        for turn in range(answers):
            ids, images = conversation.prompt()
            request = GenerateRequest(str(number), ids, images, 2 + number, seed=10 * number + turn)
            conversation.add_response(await engine.generate(request))
            conversation.observe("", f"Screen {turn}")
        info = EpisodeInfo(float(number % 2), Outcome.SUCCESS, "t", "g", str(number), number)
        (row,) = conversation.to_trajectories(info)
        return row

    async def all_episodes() -> list[Trajectory]:
        engine = LocalEngine(policy, max_batch=2)
        try:
            return list(await asyncio.gather(*(episode(engine, number) for number in range(episodes))))
        finally:
            await engine.close()

    return asyncio.run(all_episodes())
