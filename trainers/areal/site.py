"""Where episodes are played on AReaL: the engine, its loop, and the environments that live on it."""

from __future__ import annotations

from pathlib import Path

from cua_agent.models.policy import PolicyModel
from trainers.areal.engine import PolicyEngine
from trainers.areal.evaluation import EvaluationPlayer
from trainers.areal.rollouts import GroupStream
from trainers.areal.settings import rollout_config
from trainers.areal.together import SharedPlayer
from trainers.areal.world import LoopWorld
from trainers.config import TrainConfig
from trainers.crew import ALONE, Crew, own_share
from trainers.parts import Parts, build_engine
from trainers.rollouts import EpisodePlayer


class RolloutSite:
    """Serves `serving`, a copy of the policy, and plays with it. Call `open` once the engine is initialised.

    With a `crew`, it plays this process's share.
    """

    def __init__(
        self, config: TrainConfig, parts: Parts, run_directory: Path, serving: PolicyModel, crew: Crew = ALONE
    ) -> None:
        config = own_share(config, crew)
        self._config = config
        self._parts = parts
        self._crew = crew
        self._stream: GroupStream | None = None
        self.world = LoopWorld(parts.environments, config.rollout.concurrency)
        self.engine = PolicyEngine(rollout_config(config, run_directory), build_engine(config, serving), serving)
        own = EvaluationPlayer(parts, self.engine, self.world, config.rollout.infra_retries)
        self.player: EpisodePlayer = own if crew.size == 1 else SharedPlayer(own, crew)

    def stream(self, *, pixels: bool) -> GroupStream:
        """The training sequence, played on this site; `pixels`: with the images as AReaL's trainer wants them."""
        share = (self._crew.rank, self._crew.size)
        self._stream = GroupStream(self._config, self._parts, self.engine, self.world, pixels=pixels, share=share)
        return self._stream

    def open(self) -> None:
        """Start what environments share. Closes the site and raises when this machine cannot run the world."""
        try:
            self.engine.run(self.world.pool())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End environments, sampling and AReaL's threads; safe to call twice."""
        if self.engine.initialized:
            self.engine.pause()
            if self._stream is not None:
                self.engine.run(self._stream.stop())
            self.world.close()
            self.engine.destroy()
