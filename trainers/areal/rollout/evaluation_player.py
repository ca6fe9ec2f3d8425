"""Evaluation episodes beside the training rollouts: on the same loop, engine and environments, outside the bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cua_agent.envs.base import Environment
from trainers.areal.rollout.engine_client import EngineClient
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.components import Components
from trainers.protocol import Episode, EpisodeSpec, OnDone, Played
from trainers.rollouts.collection import play_all


class EvaluationPlayer:
    """Implements `EpisodePlayer`: plays held-out episodes with the weights that `engine` serves; the trainer waits, so
    these are of one version.

    AReaL starts no new training group until the last of these episodes has an environment, and then lets them have
    those that become free; groups that run keep theirs.
    """

    def __init__(
        self, components: Components, engine: PolicyRolloutEngine, environments: LoopEnvironments, retries: int
    ) -> None:
        self._engine = engine
        self._environments = environments
        self._retries = retries
        self._run_episode = components.runner_for(EngineClient(engine))

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        resume = _nothing if self._engine.workflow_executor.is_paused() else self._engine.resume
        self._engine.pause()
        try:
            return self._engine.run(self._play(specs, on_done, resume))
        finally:
            resume()

    async def _play(self, specs: Sequence[EpisodeSpec], on_done: OnDone, all_begun: Callable[[], None]) -> list[Played]:
        waiting = len(specs)

        async def run(environment: Environment, spec: EpisodeSpec) -> Episode:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                all_begun()
            return await self._run_episode(environment, spec)

        return await play_all(await self._environments.pool(), run, specs, self._retries, on_done)


def _nothing() -> None:
    pass
