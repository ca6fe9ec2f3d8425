"""Our agent loop as AReaL workflows: multi-turn, with a screenshot every turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from areal.api import InferenceEngine, RolloutWorkflow

from cua_agent.inference.base import InferenceEngine as Engine
from cua_agent.models.policy import PolicyModel
from trainers.areal.rollout.engine_client import EngineClient
from trainers.areal.rollout.group_results import FinishedGroup, GroupResults
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.tensors import TensorDict, rows_to_tensors
from trainers.config import RolloutConfig
from trainers.protocol import EpisodeRunner, Group, GroupSpec
from trainers.rollouts.collection import play_groups
from trainers.rollouts.group_spool import NO_SPOOL, GroupSpool
from trainers.rollouts.replay import SuccessPool
from trainers.rollouts.task_sampler import TaskSampler

logger = logging.getLogger(__name__)

RunnerFor = Callable[[Engine], EpisodeRunner]


class GroupWorkflow(RolloutWorkflow):  # type: ignore[misc]
    """Plays one group: the same task from the same start, `rollout.group_size` episodes together, of which `branches`
    branch off another one.

    `data` is `{"index": n, "task": id}`, the n-th group of the training sequence and the task drawn for it. The result
    is AReaL's tensor contract with one or several rows an episode, or None when the group was lost. A lost episode is
    replaced, at most `rollout.infra_retries` times; nothing is raised, because AReaL would take it for a rejection:
    what happened is in the results.
    """

    def __init__(
        self,
        policy: PolicyModel,
        environments: LoopEnvironments,
        runner_for: RunnerFor,
        sampler: TaskSampler,
        rollout: RolloutConfig,
        results: GroupResults,
        successes: SuccessPool,
        *,
        branches: int,
        pixels: bool,
        spool: GroupSpool = NO_SPOOL,
    ) -> None:
        self._spool = spool
        self._policy = policy
        self._environments = environments
        self._runner_for = runner_for
        self._sampler = sampler
        self._rollout = rollout
        self._results = results
        self._successes = successes
        self._branches = branches
        self._pixels = pixels
        self._playing: set[asyncio.Task[Any]] = set()
        self._stopped = False

    async def arun_episode(self, engine: InferenceEngine, data: dict[str, Any]) -> TensorDict | None:
        task = asyncio.current_task()
        assert task is not None
        self._playing.add(task)
        try:
            return await self._arun(engine, int(data["index"]), str(data["task"]))
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            return None
        finally:
            self._playing.discard(task)

    async def stop(self) -> None:
        """Break off every group in progress; nobody waits for it any more."""
        self._stopped = True
        playing = list(self._playing)
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)

    async def _arun(self, engine: InferenceEngine, index: int, task: str) -> TensorDict | None:
        spec = self._sampler.named(index, task)
        tensors: TensorDict | None = None
        try:
            finished = await self._play(engine, index, spec)
            if rows := finished.group.rows:
                tensors = await asyncio.to_thread(rows_to_tensors, self._policy, rows, pixels=self._pixels)
        except Exception as error:
            logger.exception("group %s (%s) broke off", spec.group_id, spec.task.id)
            finished = FinishedGroup(index, Group(spec, []), error=error)
        self._results.finish(finished)
        return tensors

    async def _play(self, engine: InferenceEngine, index: int, spec: GroupSpec) -> FinishedGroup:
        pool = await self._environments.pool()
        client = EngineClient(engine, before_turn=lambda: self._results.start(index, engine.get_version))
        run = self._runner_for(client)
        size, retries = self._rollout.group_size, self._rollout.infra_retries
        [group], lost = await play_groups(
            pool, run, [spec], size, retries, on_group=self._spool.put, branches=self._branches
        )
        return FinishedGroup(index, self._successes.completed(group, client.version), lost)
