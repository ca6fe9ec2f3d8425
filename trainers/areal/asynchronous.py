"""Phases 1 and 2: AReaL collects, the loop is ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cua_agent.models.policy import PolicyModel
from trainers.areal.engine import InProcessEngine
from trainers.areal.evaluation import EvaluationPlayer
from trainers.areal.rollouts import GroupStream
from trainers.areal.settings import rollout_config
from trainers.config import TrainConfig
from trainers.parts import Parts
from trainers.rollouts import Collected, EpisodeSpec, OnDone, Played, Usage


class AsynchronousRollouts:
    """Implements `Rollouts` on AReaL's executor.

    Samples from `serving`, a copy of the policy; `trained_weights` gives the weights to copy into it, by name.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        run_directory: Path,
        serving: PolicyModel,
        trained_weights: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self._trained_weights = trained_weights
        batch = config.inference.max_batch
        self._engine = InProcessEngine(rollout_config(config, run_directory), serving, batch)
        self._evaluator = InProcessEngine(rollout_config(config, run_directory, evaluation=True), serving, batch)
        for engine in (self._engine, self._evaluator):
            engine.initialize()
        self._stream = GroupStream(config, parts, self._engine, pixels=False)
        self._player = EvaluationPlayer(config, parts, self._evaluator)
        try:
            self._stream.open()
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> int:
        return self._stream.position

    def collect(self, on_done: OnDone) -> tuple[Collected, Usage]:
        collected, _, usage = self._stream.collect(on_done)
        return collected, usage

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        self._engine.pause()
        try:
            return self._player.play(specs, on_done)
        finally:
            self._engine.resume()

    def publish(self, version: int) -> None:
        self._stream.before_version()
        self._serve(version)
        self._stream.after_version()

    def restore(self, version: int, position: int) -> None:
        self._serve(version)
        self._stream.restore(position)

    def close(self) -> None:
        for world, engine in ((self._stream, self._engine), (self._player, self._evaluator)):
            engine.pause()
            world.close()
            engine.destroy()

    def _serve(self, version: int) -> None:
        weights = self._trained_weights()
        self._engine.update_weights(version, weights)
        self._evaluator.update_weights(version, weights)
