"""`CUAGRPOTrainer`: the synchronous backend. Roll out, learn, roll out again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from cua_agent.envs.base import EnvironmentFailure
from cua_agent.tasks import CUATask, EvalSplit
from cua_agent.trajectory import Trajectory
from trainers.checkpoint import TrainerState, load_checkpoint, prune_checkpoints, save_checkpoint
from trainers.config import TrainConfig
from trainers.evaluation import evaluation_episodes, score
from trainers.grpo.advantages import group_advantages
from trainers.legacy.interrupts import interrupts_held
from trainers.legacy.learner import PolicyLearner
from trainers.legacy.session import RolloutSession, Usage
from trainers.legacy.setup import Parts, build_parts, find_checkpoint
from trainers.legacy.step_metrics import Timing, advance, staleness, step_metrics
from trainers.legacy.stopping import observe, out_of_budget, stop_after_evaluation
from trainers.metrics import MetricsWriter, ProgressReporter, open_trackers
from trainers.protocol import Batch, EvalRecord, LossRecord, StepRecord, TrainResult
from trainers.rollouts import Collected, Group
from trainers.task_sampler import TaskSampler
from trainers.trajectory_store import TrajectoryStore


class CUAGRPOTrainer:
    """Multi-turn GRPO, synchronously: every episode is sampled by the policy that is about to be updated.

    Writes the run directory's metrics, recorded batches and checkpoints to `run_directory`. `parts` replaces what
    `build_parts(config)` would load. With `config.resume` the run goes on from that checkpoint.
    """

    def __init__(
        self, config: TrainConfig, run_directory: Path, progress: ProgressReporter, parts: Parts | None = None
    ) -> None:
        self._config = config
        self._directory = run_directory
        self._progress = progress
        resume_from = find_checkpoint(config.resume)
        trackers = open_trackers(config.logging, run_directory, {"backend": config.backend, "seed": config.seed})
        self._writer = MetricsWriter(run_directory, trackers)
        self._store = TrajectoryStore(run_directory / "trajectories", config.logging.save_trajectories)
        self._parts = parts = parts or build_parts(config)
        self._learner = PolicyLearner(parts.policy, config)
        self._sampler = TaskSampler(parts.train_tasks, config.seed)
        self._session = RolloutSession(config.rollout, parts.engine, parts.environments, parts.run_episode)
        self._state = TrainerState()
        self._usage = Usage()
        if resume_from is not None:
            self._resume(resume_from)

    @property
    def state(self) -> TrainerState:
        """Progress so far: what a checkpoint would hold."""
        return replace(self._state, data_position=self._sampler.position)

    def train(self) -> TrainResult:
        """Run until `max_steps`, `max_minutes`, the target success, or lost patience.

        Whatever breaks it off is raised again after the checkpoint `last` is saved: Ctrl-C, or the
        `EnvironmentFailure` of a step or evaluation that lost all its episodes.
        """
        clock = time.perf_counter() - self._state.wall_s
        try:
            reason, end = self._train_until_stopped()
            templates = self._evaluate_split("templates")
        except BaseException:
            self._save_last(clock)
            self._progress.message(f"stopped after step {self._state.step}; resume={self._checkpoint('last')}")
            raise
        self._save_last(clock)
        result = self._result(reason, end)
        self._writer.summary(
            result,
            backend=self._config.backend,
            phase=None,
            seed=self._config.seed,
            experiment=self._config.experiment,
            eval_success_templates=templates.success_rate,
        )
        return result

    def update(self, batch: Batch) -> StepRecord:
        """One optimiser step on `batch`; the engine serves the new weights from then on."""
        record = self._learner.update(batch)
        self._publish([record])
        return record

    def loss_and_gradients(self, batch: Batch) -> LossRecord:
        return self._learner.loss_and_gradients(batch)

    def compute_loss_for_trajectory(self, trajectory: Trajectory, advantage: float) -> Tensor:
        """Loss of one trajectory on its own, 0-d with gradient: that of a batch that holds nothing else."""
        return self._learner.loss_of(trajectory, advantage)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """`eval.episodes` episodes at the rollouts' temperature, on the same held-out seeds every time.

        Raises `EnvironmentFailure` when every episode was lost.
        """
        specs = evaluation_episodes(tasks, self._config.eval.episodes)
        played = self._session.play(specs, partial(self._progress.phase, "evaluation"))
        record = score(specs, played, self._state.step)
        if record.episodes == 0:
            raise EnvironmentFailure(f"all {len(specs)} evaluation episodes were lost; the last: {played[-1].lost[-1]}")
        return record

    def save(self, path: Path) -> None:
        learner = self._learner
        save_checkpoint(
            path,
            policy=self._parts.policy,
            optimizer=learner.optimizer,
            scheduler=learner.scheduler,
            state=self.state,
        )

    def load(self, path: Path) -> None:
        learner = self._learner
        self._state = load_checkpoint(
            path, policy=self._parts.policy, optimizer=learner.optimizer, scheduler=learner.scheduler
        )
        self._sampler.position = self._state.data_position
        self._parts.engine.update_weights(self._state.policy_version)

    def close(self) -> None:
        self._session.close()
        self._writer.close()
        self._progress.close()

    def _resume(self, path: Path) -> None:
        try:
            self.load(path)
        except BaseException:
            self.close()
            raise
        self._progress.message(f"resumed from {path} at step {self._state.step}")

    def _train_until_stopped(self) -> tuple[str, EvalRecord]:
        """Why the run stopped, and the evaluation of its last weights."""
        config = self._config
        latest: EvalRecord | None = None
        reason: str | None = None
        if config.eval.baseline and self._state.eval_success_start is None:
            latest = self._evaluate_split("seeds")
            self._evaluate_split("templates")
            reason = stop_after_evaluation(self._state, latest.success_rate, config.eval)
        while reason is None and (reason := out_of_budget(self._state, config)) is None:
            self._step()
            latest = None
            if config.eval.every_steps and self._state.step % config.eval.every_steps == 0:
                latest = self._evaluate_split("seeds")
                reason = stop_after_evaluation(self._state, latest.success_rate, config.eval)
            self._save_periodically()
        return reason, latest or self._evaluate_split("seeds")

    def _step(self) -> None:
        started, position = time.perf_counter(), self._sampler.position
        try:
            collected, usage = self._roll_out()
        except BaseException:
            self._sampler.position = position  # nothing was learnt from these groups: a resumed run plays them again
            raise
        with interrupts_held():  # weights, counters and files move on together
            self._learn(collected, usage, started)

    def _roll_out(self) -> tuple[Collected, Usage]:
        collected, usage = self._session.collect(
            self._sampler.next, self._has_signal, partial(self._progress.phase, "rollouts")
        )
        lost = collected.lost
        if not collected.episodes:
            raise EnvironmentFailure(f"all {len(lost)} episodes of a step were lost; the last: {lost[-1]}")
        if lost:
            self._progress.message(f"{len(lost)} episodes were lost and replaced; the last: {lost[-1]}")
        return collected, usage

    def _has_signal(self, group: Group) -> bool:
        return group_advantages(group.rows, self._config.advantage).groups_kept == 1

    def _learn(self, collected: Collected, usage: Usage, started: float) -> None:
        rows = [row for group in collected.kept for row in group.rows]
        batch = group_advantages(rows, self._config.advantage).batch
        stale = staleness(rows, self._state.policy_version)
        self._store.record(self._state.step + 1, batch)
        clock = time.perf_counter()
        updates = [self._learner.update(batch) for _ in range(self._config.optim.updates_per_batch if rows else 0)]
        learnt = time.perf_counter()
        self._publish(updates)
        ended = time.perf_counter()
        timing = Timing(usage.wall_s, learnt - clock, ended - learnt, ended - started, self._utilisation(usage))
        self._state = advance(self._state, timing, stale)
        self._usage += usage
        metrics = step_metrics(self._state, collected, batch, updates, stale, timing)
        self._writer.step(metrics)
        self._progress.step(metrics, self._config.max_steps)

    def _publish(self, updates: Sequence[StepRecord]) -> None:
        """Let the engine serve the new weights under a new version, if there are any."""
        if all(update.skipped for update in updates):
            return
        self._state = replace(self._state, policy_version=self._state.policy_version + 1)
        self._parts.engine.update_weights(self._state.policy_version)

    def _evaluate_split(self, split: EvalSplit) -> EvalRecord:
        record = self.evaluate(self._parts.eval_tasks[split])
        self._writer.evaluation(record, split)
        self._progress.evaluation(record, split)
        if split == "seeds":
            self._state = observe(self._state, record.success_rate)
            if self._state.best_step == self._state.step:
                self.save(self._checkpoint("best"))
        return record

    def _save_periodically(self) -> None:
        config, step = self._config.checkpoint, self._state.step
        if config.every_steps and step % config.every_steps == 0:
            self.save(self._checkpoint(f"step_{step:06d}"))
            prune_checkpoints(self._directory / "checkpoints", keep=config.keep, best_step=self._state.best_step)

    def _save_last(self, clock: float) -> None:
        self._state = replace(self._state, wall_s=time.perf_counter() - clock)
        self.save(self._checkpoint("last"))

    def _checkpoint(self, name: str) -> Path:
        return self._directory / "checkpoints" / name

    def _utilisation(self, usage: Usage) -> float:
        return usage.busy_s / (self._config.rollout.concurrency * usage.wall_s) if usage.wall_s else 0.0

    def _result(self, reason: str, end: EvalRecord) -> TrainResult:
        state = self._state
        return TrainResult(
            steps=state.step,
            stop_reason=reason,
            eval_success_start=state.eval_success_start,
            eval_success_end=end.success_rate,
            eval_success_best=state.best_success,
            wall_s=state.wall_s,
            rollout_s=state.rollout_s,
            train_s=state.train_s,
            env_utilisation=self._utilisation(self._usage),
            staleness_max=state.staleness_max,
        )
