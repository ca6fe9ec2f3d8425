"""Evaluation episodes beside the training rollouts: on the same loop, engine and environments, outside the bound."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.areal.rollout.engine_client import EngineClient
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.components import Components
from trainers.protocol import EpisodeSpec, OnDone, Played
from trainers.rollouts.collection import play_all


class EvaluationPlayer:
    """Implements `EpisodePlayer`: plays held-out episodes with the weights that `engine` serves.

    AReaL starts no new training group meanwhile; those that run keep their environments.
    """

    def __init__(
        self, components: Components, engine: PolicyRolloutEngine, environments: LoopEnvironments, retries: int
    ) -> None:
        self._engine = engine
        self._environments = environments
        self._retries = retries
        self._run_episode = components.runner_for(EngineClient(engine))

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        was_paused = self._engine.workflow_executor.is_paused()
        self._engine.pause()
        try:
            return self._engine.run(self._play(specs, on_done))
        finally:
            if not was_paused:
                self._engine.resume()

    async def _play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        return await play_all(await self._environments.pool(), self._run_episode, specs, self._retries, on_done)
