"""The trainer of phase 3: AReaL's `PPOTrainer`, with the books of every other backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cua_agent.options import shown
from cua_agent.tasks import CUATask
from cua_agent.trajectory import Trajectory
from trainers.areal.config.translation import trainer_config
from trainers.areal.rollout.distributed_rollouts import collect_on_all, position_of_rank
from trainers.areal.rollout.group_window import ReadyGroup
from trainers.areal.rollout.rollout_worker import RolloutWorker, serving_policy
from trainers.areal.tensors import TensorDict, carries_signal, rows_to_tensors, with_steps
from trainers.areal.train.data_parallel import groups_of_rank
from trainers.areal.train.hooked_ppo_trainer import Engines, Hooks, PolicyPPOTrainer
from trainers.areal.train.own_tracer import end_tracer, tell_the_time, tracer_config
from trainers.areal.train.phase2_learner import gradients_of, restore, snapshot_of, start_actor
from trainers.areal.train.ppo_actor import PPOPolicyActor
from trainers.areal.train.ppo_lifecycle import PPOLifecycle
from trainers.components import Components
from trainers.config import ConfigError, TrainConfig
from trainers.distributed.process_group import ProcessGroup
from trainers.grpo.advantages import batch_of
from trainers.grpo.blindness import blind_gap
from trainers.grpo.checks import check_batch, check_finite, check_row, not_finite
from trainers.protocol import (
    Batch,
    Collected,
    EvalRecord,
    Group,
    LossRecord,
    Snapshot,
    StepRecord,
    TrainerState,
    TrainResult,
    Usage,
)
from trainers.run.lifecycle import RunLifecycle
from trainers.run.metrics import ProgressReporter
from trainers.run.operations import UpdateOperations
from trainers.run.recorder import RunRecorder


class Phase3Trainer:
    """Implements `Trainer`. Advantages and loss are AReaL's, computed from the rewards: `update` ignores those of its
    batch."""

    def __init__(
        self,
        config: TrainConfig,
        run_directory: Path,
        progress: ProgressReporter,
        components: Components,
        process_group: ProcessGroup,
    ) -> None:
        check_supported(config)
        self._process_group = process_group
        self._config = config
        self._policy = components.policy
        serving = serving_policy(config, components.policy)
        self._actor = PPOPolicyActor(components.policy, config, process_group.size)
        start_actor(self._actor, config)
        self._worker = RolloutWorker(config, components, run_directory, serving, process_group)
        hooks = Hooks(step_ended=lambda: self._run.step_ended(), settled=lambda: self._run.settle())
        engines = Engines(self._actor, self._worker.engine)
        own_config = trainer_config(config, run_directory, process_group.size)
        own_config.perf_tracer = tracer_config(config, run_directory)
        self._ppo = PolicyPPOTrainer(own_config, engines, hooks)
        tell_the_time()
        self._stream = self._worker.stream(pixels=process_group.size == 1)
        self._position = 0
        self._actor.publish = self._publish
        self._worker.engine.next_batch = self._next_batch
        self._closed = False
        self._recorder = RunRecorder(
            config,
            run_directory,
            progress,
            snapshot=self._snapshot,
            position=lambda: self._position,
            difficulty=components.difficulty,
            successes=components.successes,
            operations=UpdateOperations(components.policy),
            process_group=process_group,
        )
        self._lifecycle = RunLifecycle(
            config,
            progress,
            self._recorder,
            self._worker.player,
            components.eval_tasks,
            partial(batch_of, config=config.advantage),
        )
        self._run = PPOLifecycle(self._lifecycle, self._recorder)
        try:
            self._worker.open()
            if config.resume is not None:
                self._lifecycle.resume(config.resume, self.load)
        except BaseException:
            self.close()
            raise

    def train(self) -> TrainResult:
        return self._run.train(self._train)

    def update(self, batch: Batch) -> StepRecord:
        check_batch(self._policy, batch)
        if unusable := not_finite(batch):
            return StepRecord({}, skipped=True, reason=unusable)
        self._actor.ppo_update(self.tensors(batch))
        record = self._actor.last_update(self._process_group)
        assert record is not None  # the batch is not empty
        self._actor.lr_scheduler_step()
        if not record.skipped:
            self._serve(self._recorder.new_version())
        return record

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        check_batch(self._policy, batch)
        check_finite(batch)
        groups = self.tensors(batch)
        gradients = gradients_of(self._actor, lambda: self._actor.ppo_update(groups))
        return LossRecord(self._actor.watch.metrics(self._process_group), gradients)

    def tensors(self, batch: Batch) -> list[TensorDict]:
        """This process's share of the batch as AReaL's trainer prepares it: by group, with advantages."""
        self._actor.export_stats()  # AReaL gathers them for the whole process, and nobody asked for those of before
        by_group: dict[str, list[Trajectory]] = {}
        for row in batch.trajectories:
            by_group.setdefault(row.group_id, []).append(row)
        return self._actor.compute_advantages(self._tensors_of_rank(list(by_group.values())))

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        return self._lifecycle.evaluate(tasks)

    def save(self, path: Path) -> None:
        self._recorder.snapshot().write(path)

    def load(self, path: Path) -> None:
        state = restore(self._actor, path, self._process_group)
        self._recorder.restore(state, path)
        self._serve(state.policy_version)
        self._stream.restore(position_of_rank(state.data_position, self._process_group))
        self._position = state.data_position
        self._ppo.start_at(state.step)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._worker.close()
        self._ppo.close()
        end_tracer()
        self._recorder.close()

    def _train(self) -> None:
        self._ppo.train(
            workflow=self._stream.workflow,
            eval_workflow=self._stream.workflow,
            dynamic_filter_fn=partial(carries_signal, config=self._config.advantage),
        )

    def _next_batch(self) -> list[TensorDict]:
        """What AReaL's trainer learns from next."""
        self._run.watch.mark("collecting")
        collected, own, usage = self._collect()
        for row in (row for group in collected.kept for row in group.rows):
            check_row(self._policy, row)
        tensors = self._own_tensors(collected.kept, own)
        if not self._run.collected(collected, usage):
            return []
        if self._recorder.blindness_due:
            batch = batch_of([row for group in collected.kept for row in group.rows], self._config.advantage)
            self._run.seen = {"blind_gap": blind_gap(batch, self.loss_and_gradients)}
        return tensors

    def _collect(self) -> tuple[Collected, list[ReadyGroup], Usage]:
        """What all processes collected, and the groups that this one did."""
        report = self._process_group.interruptible(self._lifecycle.collecting())
        own: list[ReadyGroup] = []

        def collect() -> tuple[Collected, Usage]:
            collected, ready, usage = self._stream.collect(report)
            own.extend(ready)
            return collected, usage

        collected, usage, self._position = collect_on_all(self._process_group, collect, lambda: self._stream.position)
        return collected, own, usage

    def _own_tensors(self, groups: Sequence[Group], own: Sequence[ReadyGroup]) -> list[TensorDict]:
        """This process's share of `groups`; a process on its own has their tensors already, in `own`."""
        if self._process_group.size == 1:
            config = self._config.advantage
            return self._with_reference([with_steps(ready.tensors, ready.group.rows, config) for ready in own])
        return self._tensors_of_rank([group.rows for group in groups])

    def _tensors_of_rank(self, groups: Sequence[Sequence[Trajectory]]) -> list[TensorDict]:
        shares = groups_of_rank(groups, self._process_group)
        config = self._config.advantage
        return self._with_reference([with_steps(rows_to_tensors(self._policy, rows), rows, config) for rows in shares])

    def _with_reference(self, groups: list[TensorDict]) -> list[TensorDict]:
        if not groups or not self._config.loss.kl_coefficient:
            return groups
        logprobs = self._actor.reference_logprobs(groups)
        return [{**group, "ref_logp": scores} for group, scores in zip(groups, logprobs, strict=True)]

    def _publish(self) -> None:
        version = self._run.learnt(self._actor.last_update(self._process_group))
        if version is not None:
            self._serve(version)
            self._stream.after_version()
        self._run.watch.mark("published")

    def _serve(self, version: int) -> None:
        self._worker.update_weights(version, self._actor.trained_weights)
        self._actor.take_version(version)

    def _snapshot(self, state: TrainerState) -> Snapshot:
        return snapshot_of(self._actor, state, self._process_group)


def check_supported(config: TrainConfig) -> None:
    """Raise `ConfigError` for what AReaL's trainer does not compute; phases 1 and 2 do."""
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "loss.kind": (config.loss.kind, ("ppo_clip", "sapo")),
        "loss.normalisation": (config.loss.normalisation, ("token_mean",)),
        "loss.entropy_coefficient": (config.loss.entropy_coefficient, (0.0,)),
        "optim.updates_per_batch": (config.optim.updates_per_batch, (1,)),
    }
    if config.loss.kind == "sapo":
        allowed["loss.kind=sapo loss.decoupled"] = (config.loss.decoupled, (False,))
    for key, (value, values) in allowed.items():
        if value not in values:
            listed = ", ".join(map(shown, values))
            raise ConfigError(
                f"{key}={shown(value)}: allowed with backend=areal phase=3: {listed} (phases 1 and 2 take it)"
            )
