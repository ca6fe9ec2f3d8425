"""What AReaL constructs, by name, in worker processes: our actor, our rollout engine and our workflow."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from areal.api import LocalInfServerInfo, RolloutWorkflow, WeightUpdateMeta
from safetensors.torch import load_file, save_file

from trainers.areal.cluster.group_reports import Report, pack_played, pack_report, unpack_specs
from trainers.areal.cluster.worker_specs import WorkerActorConfig, WorkerEngineConfig, run_config
from trainers.areal.config.translation import rollout_config
from trainers.areal.loopback import given_meeting_place, stay_on_this_machine
from trainers.areal.process import no_async_saver, quiet, use_platform
from trainers.areal.rollout.evaluation_player import EvaluationPlayer
from trainers.areal.rollout.group_results import GroupResults
from trainers.areal.rollout.group_workflow import GroupWorkflow
from trainers.areal.rollout.loop_environments import LoopEnvironments
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.areal.tensors import TensorDict, carries_signal, with_steps
from trainers.areal.train.phase2_learner import restore, snapshot_of
from trainers.areal.train.ppo_actor import PPOPolicyActor
from trainers.areal.train.reference_model import ReferenceModel
from trainers.components import build_components, build_engine, build_policy
from trainers.config import TrainConfig
from trainers.config.cluster import workers_of
from trainers.episodes.log import EpisodeLog
from trainers.protocol import TrainerState
from trainers.rollouts.task_sampler import training_sampler

T = TypeVar("T")
WEIGHTS = "trained.safetensors"
_UNBOUNDED = 10**9


@dataclass(frozen=True)
class _GroupPeers:
    """Implements `Communicator` for the training workers; collective over `group`."""

    rank: int
    size: int
    group: Any

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


class WorkerActor(PPOPolicyActor):
    """`PPOPolicyActor` as one training worker: it loads the policy itself, and hands weights on as a file."""

    def __init__(self, config: WorkerActorConfig) -> None:
        run = _prepare(config.run)
        policy = build_policy(run, sharded=True)
        super().__init__(policy, run, int(os.environ["WORLD_SIZE"]))

    def update_weights(self, meta: WeightUpdateMeta) -> None:
        """Leave the trained weights where the controller tells its rollout workers to look. Collective."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.served_weights().items()}
        if self.rank == 0:
            directory = Path(meta.path)
            directory.mkdir(parents=True, exist_ok=True)
            save_file(weights, directory / WEIGHTS)
            self.rollout_engine.update_weights_from_disk(meta).result()
        dist.barrier(group=self.cpu_group)

    def last_figures(self) -> dict[str, dict[str, float]]:
        """`figures` and `stats` of the last update, for `step_record`; of all workers together. Collective."""
        figures = self.watch.metrics(self._peers)
        return {
            "figures": {name: float(value) for name, value in figures.items()},
            "stats": {name: float(value) for name, value in self.stats.items()},
        }

    def save_run(self, path: str, state: TrainerState) -> None:
        """Write a checkpoint; rank 0 does. Collective."""
        snapshot_of(self, state, self._peers).write(Path(path))

    def load_run(self, path: str) -> TrainerState:
        """Restore what `save_run` wrote. Raises `CheckpointError`."""
        return restore(self, Path(path), self._peers)

    @property
    def _peers(self) -> _GroupPeers:
        return _GroupPeers(self.rank, self.world_size, self.cpu_group)


class WorkerEngine(PolicyRolloutEngine):
    """`PolicyRolloutEngine` as one rollout worker: a copy of the policy and its share of the environments."""

    def __init__(self, config: WorkerEngineConfig) -> None:
        run = _share(_prepare(config.run), config.workers)
        directory = Path(config.fileroot).parent
        process = f"{socket.gethostname()}-{os.getpid()}"
        episodes = EpisodeLog(directory, process, run.logging, run.reward)
        components = build_components(run, episodes=episodes)
        serving = components.policy.frozen_copy()
        own = replace(
            rollout_config(run, directory),
            max_head_offpolicyness=_UNBOUNDED,  # the controller keeps the bound
            check_trajectory_format=False,
        )
        super().__init__(own, build_engine(run, serving), serving)
        self._run, self._components, self._workers = run, components, config.workers
        self._environments = LoopEnvironments(components.environments, run.rollout.concurrency)
        self._successes = components.successes
        self._sampler = training_sampler(run, components.train_tasks, components.difficulty)
        tasks = [*components.train_tasks, *chain.from_iterable(components.eval_tasks.values())]
        self._tasks = {task.id: task for task in tasks}
        self._player = EvaluationPlayer(components, self, self._environments, run.rollout.infra_retries)
        self._reference = ReferenceModel(components.policy, run) if run.loss.kl_coefficient else None
        self._whole_groups = workers_of(run).training > 1

    def launch_server(self, server_args: dict[str, Any]) -> LocalInfServerInfo:
        """Nothing to launch: the policy is served in this process, or by `inference.servers`."""
        del server_args
        return LocalInfServerInfo(host="", port=0, process=None)

    def initialize(
        self,
        engine_id: str | None = None,
        addr: str | list[str] | None = None,
        train_data_parallel_size: int | None = 1,
    ) -> None:
        """Start AReaL's executor, and the environments on its loop. Raises `WorldUnavailable`."""
        super().initialize(engine_id, addr, train_data_parallel_size)
        self.run(self._environments.pool())

    def update_weights_from_disk(self, meta: WeightUpdateMeta) -> None:
        """Serve what the training workers left on disk."""
        self.update_weights(int(meta.version), load_file(Path(meta.path) / WEIGHTS))

    async def play_group(self, index: int, task: str) -> TensorDict:
        """The `index`-th group of the training sequence, for which the controller drew `task`: its tensors if it
        carries signal, and in `report` a packed `Report`. Nothing is raised and nothing withheld, because AReaL would
        not say why."""
        results = GroupResults()
        workflow = GroupWorkflow(
            self._components.policy,
            self._environments,
            self._components.runner_for,
            self._sampler,
            self._run.rollout,
            results,
            self._successes,
            branches=self._run.advantage.forked,
            pixels=True,
        )
        tensors = await workflow.arun_episode(self, {"index": index, "task": task})
        [finished] = results.take(0.0)
        self._successes.keep([finished.group])  # which step collects it is known to the controller alone
        report = {"report": pack_report(Report(finished, str(self.engine_id), self._environments.stats()))}
        if tensors is None or not carries_signal(tensors, self._run.advantage) or self._is_torn(tensors):
            return report
        if self._reference is not None:
            logprobs = await asyncio.to_thread(self._reference.logprobs, finished.group.rows)
            tensors["ref_logp"] = logprobs.roll(-1, dims=-1)
        return {**with_steps(tensors, finished.group.rows, self._run.advantage), **report}

    def play_share(self, specs: str) -> str:
        """Of packed `EpisodeSpec`s, play every `workers`-th; packed `Played`, in order."""
        mine = unpack_specs(specs, self._tasks)[int(self.engine_id) :: self._workers]
        return pack_played(self._player.play(mine, lambda *_: None) if mine else [])

    def destroy(self) -> None:
        """End environments and sampling; safe to call twice."""
        if self.initialized:
            self.pause()
            self._environments.close()
        self._components.close()
        super().destroy()

    def _is_torn(self, tensors: TensorDict) -> bool:
        """Whether episodes are missing: several training workers need groups of the same size."""
        return self._whole_groups and len(tensors["rewards"]) != self._run.rollout.group_size


class PlayGroup(RolloutWorkflow):  # type: ignore[misc]
    """The workflow of a `WorkerEngine`; `data` is `{"index": n, "task": id}`."""

    async def arun_episode(self, engine: WorkerEngine, data: dict[str, Any]) -> TensorDict:
        return await engine.play_group(int(data["index"]), str(data["task"]))


def _prepare(run: str) -> TrainConfig:
    """Make this process a worker of the run that it is handed."""
    quiet()
    no_async_saver()
    if (directory := given_meeting_place()) is not None:
        stay_on_this_machine(directory)
    config = run_config(run)
    use_platform(config.loader.device)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # LoRA dropout
    return config


def _share(config: TrainConfig, workers: int) -> TrainConfig:
    return replace(config, rollout=replace(config.rollout, concurrency=config.rollout.concurrency // workers))
