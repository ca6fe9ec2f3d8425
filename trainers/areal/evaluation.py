"""Evaluation episodes through AReaL: a second engine without a staleness bound, as AReaL evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from queue import Empty, SimpleQueue

from trainers.areal.engine import InProcessEngine
from trainers.areal.workflow import EpisodesWorkflow
from trainers.areal.world import LoopWorld
from trainers.config import TrainConfig
from trainers.parts import Parts
from trainers.rollouts import EpisodeSpec, OnDone, Played

_POLL_S = 1.0


class EvaluationPlayer:
    """Plays held-out episodes on `engine`, which serves the newest weights."""

    def __init__(self, config: TrainConfig, parts: Parts, engine: InProcessEngine) -> None:
        self._engine = engine
        self._runner_for = parts.runner_for
        self._retries = config.rollout.infra_retries
        self._world = LoopWorld(parts.environments, config.rollout.concurrency)

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        """Results in the order of `specs`. Raises an episode's unexpected error."""
        ended: SimpleQueue[None] = SimpleQueue()
        workflow = EpisodesWorkflow(
            self._world, self._runner_for, list(specs), self._retries, on_end=lambda: ended.put(None)
        )
        for index in range(len(specs)):
            self._engine.submit({"index": index}, workflow, is_eval=True)
        done = 0
        while done < len(specs):
            try:
                ended.get(timeout=_POLL_S)
                done += 1
                on_done(done, len(specs))
            except Empty:
                self._engine.workflow_executor.dispatcher._check_thread_exception()
        self._engine.wait(len(specs))
        if workflow.errors:
            raise workflow.errors[0]
        return [workflow.played[index] for index in range(len(specs))]

    def close(self) -> None:
        self._world.close()
