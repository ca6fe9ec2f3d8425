"""Where episodes are played on AReaL: the engine, its loop, and the environments that live on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cua_agent.models.policy import PolicyModel
from trainers.areal.config.translation import rollout_config
from trainers.areal.rollout.distributed_rollouts import DistributedPlayer
from trainers.areal.rollout.evaluation_player import EvaluationPlayer
from trainers.areal.rollout.group_stream import GroupStream
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.areal.rollout.thread_shares import compute_with, thread_shares
from trainers.components import Components, build_engine
from trainers.config import TrainConfig
from trainers.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from trainers.distributed.rank_config import config_of_rank
from trainers.protocol import EpisodePlayer
from trainers.run.taking_up import spool_of


def serving_policy(config: TrainConfig, policy: PolicyModel) -> PolicyModel:
    """What rollouts are sampled from: a copy that nothing trains, because in this process training and sampling go on
    at the same time; for servers, which have weights of their own, `policy` itself, which is published to them."""
    return policy.frozen_copy() if config.inference.name == "local" else policy


class RolloutWorker:
    """Serves `serving` (see `serving_policy`) and plays with it. Call `open` once the engine is initialised.

    With a `process_group`, it plays this process's share.
    """

    def __init__(
        self,
        config: TrainConfig,
        components: Components,
        run_directory: Path,
        serving: PolicyModel,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        config = config_of_rank(config, process_group)
        self._config = config
        self._spool = spool_of(config, run_directory, process_group)
        self._components = components
        self._process_group = process_group
        self._serves_a_copy = serving is not components.policy
        self._stream: GroupStream | None = None
        self.environments = LoopEnvironments(components.environments, config.rollout.concurrency)
        self.engine = PolicyRolloutEngine(rollout_config(config, run_directory), build_engine(config, serving), serving)
        own = EvaluationPlayer(components, self.engine, self.environments, config.rollout.infra_retries)
        self.player: EpisodePlayer = own if process_group.size == 1 else DistributedPlayer(own, process_group)

    def stream(self, *, pixels: bool) -> GroupStream:
        """The training sequence, played here; `pixels`: with the images as AReaL's trainer wants them."""
        share = (self._process_group.rank, self._process_group.size)
        self._stream = GroupStream(
            self._config,
            self._components,
            self.engine,
            self.environments,
            pixels=pixels,
            spool=self._spool,
            share=share,
        )
        return self._stream

    def update_weights(self, version: int, trained_weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Serve what is trained (by parameter name) as `version`. Raises what publishing raises."""
        self.engine.update_weights(version, trained_weights() if self._serves_a_copy else {})

    def open(self) -> None:
        """Start what environments share, and divide torch's threads between sampling and the calling thread, which
        trains. Closes the worker and raises when this machine cannot run the world."""
        try:
            self.engine.run(self.environments.pool())
            if (shares := thread_shares(self._config)) is not None:
                self.engine.run(compute_with(shares.sampling))
                torch.set_num_threads(shares.training)  # the last word: a part of it counts for the whole process
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End environments, sampling and AReaL's threads; safe to call twice. What an environment blocks is left to end
        with the process."""
        try:
            self._stop()
        finally:
            self._components.close()  # after the last word of the episodes that were still played

    def _stop(self) -> None:
        if not self.engine.initialized:
            return
        self.engine.pause()
        if self.environments.answer():
            if self._stream is not None:
                self.engine.run(self._stream.stop())
            self.environments.close()
            self.engine.destroy()
