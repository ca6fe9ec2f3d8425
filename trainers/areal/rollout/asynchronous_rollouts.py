"""Phases 1 and 2: AReaL collects, the loop is ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from trainers.areal.rollout.group_stream import GroupStream
from trainers.areal.rollout.rollout_worker import RolloutWorker
from trainers.protocol import Collected, EpisodeSpec, OnCollecting, OnDone, Played, Usage


class AsynchronousRollouts:
    """Implements `Rollouts` on AReaL's executor. `trained_weights` gives the weights to serve, by parameter name."""

    def __init__(self, worker: RolloutWorker, trained_weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self._worker = worker
        self._trained_weights = trained_weights
        worker.engine.initialize(train_data_parallel_size=1)  # its configuration holds this process's share already
        self._stream: GroupStream = worker.stream(pixels=False)
        worker.open()

    @property
    def position(self) -> int:
        return self._stream.position

    def collect(self, on_collecting: OnCollecting) -> tuple[Collected, Usage]:
        collected, _, usage = self._stream.collect(on_collecting)
        return collected, usage

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        return self._worker.player.play(specs, on_done)

    def publish(self, version: int) -> None:
        self._worker.update_weights(version, self._trained_weights)
        self._stream.after_version()

    def restore(self, version: int, position: int) -> None:
        self._worker.update_weights(version, self._trained_weights)
        self._stream.restore(position)

    def close(self) -> None:
        self._worker.close()
