"""The course of a run, whoever's loop trains: evaluations, batches, resuming, and the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cua_agent.tasks import CUATask, EvalSplit
from cua_agent.trajectory import Trajectory
from trainers.config import TrainConfig
from trainers.protocol import Batch, Collected, EpisodePlayer, EvalRecord, TrainResult
from trainers.rollouts.evaluation import evaluate
from trainers.run.collecting import CollectingWatch, nothing_to_learn
from trainers.run.metrics import ProgressReporter
from trainers.run.recorder import RunRecorder
from trainers.run.resuming import measures_changed, starting_point

Training = Callable[[], tuple[str, EvalRecord | None]]
"""Trains until the run should stop; gives why, and the evaluation of the last weights if there was one."""

ToBatch = Callable[[Sequence[Trajectory]], Batch]
"""Gives every row of a step its advantage."""


class RunLifecycle:
    """What every trainer does around its steps. `player` plays evaluations; what happens is entered in `recorder`."""

    def __init__(
        self,
        config: TrainConfig,
        progress: ProgressReporter,
        recorder: RunRecorder,
        player: EpisodePlayer,
        eval_tasks: Mapping[EvalSplit, Sequence[CUATask]],
        to_batch: ToBatch,
    ) -> None:
        self._config = config
        self._progress = progress
        self._recorder = recorder
        self._player = player
        self._eval_tasks = eval_tasks
        self._to_batch = to_batch

    def run(self, training: Training) -> TrainResult:
        """Evaluate, train, evaluate.

        Whatever breaks it off is raised again after the checkpoint `last` is saved: Ctrl-C, or the
        `EnvironmentFailure` of a step or evaluation that lost all its episodes.
        """
        self._recorder.start()
        try:
            reason, latest = self._from_baseline(training)
            end = latest or self.evaluate_split("seeds")[0]
            templates, _ = self.evaluate_split("templates")
        except BaseException as error:
            self._recorder.broken_off(error)
            raise
        return self._recorder.finish(reason, end, templates)

    def evaluate(self, tasks: Sequence[CUATask]) -> EvalRecord:
        """`eval.episodes` episodes at the rollouts' temperature, on the same held-out seeds every time.

        Raises `EnvironmentFailure` when every episode was lost.
        """
        on_done = partial(self._progress.phase, "evaluation")
        return evaluate(self._player, tasks, self._config.eval.episodes, self._recorder.state.step, on_done)

    def evaluate_split(self, split: EvalSplit) -> tuple[EvalRecord, str | None]:
        """The evaluation, and why the run should stop after it."""
        with self._recorder.evaluating(split):
            record = self.evaluate(self._eval_tasks[split])
        return record, self._recorder.evaluation(record, split)

    def collecting(self) -> CollectingWatch:
        """What looks after the coming step's rollouts. It raises `Stopped`."""
        return CollectingWatch(self._progress, self._recorder.out_of_budget)

    def batch_of(self, collected: Collected) -> Batch:
        """What the coming step trains on, recorded; says what was lost, and why there may be nothing."""
        self._tell(collected)
        batch = self._to_batch([row for group in collected.kept for row in group.rows])
        self._recorder.batch(collected, batch)
        return batch

    def resume(self, resume: str, load: Callable[[Path], None]) -> None:
        """Go on from where `resume` says, through `load`. Raises `CheckpointError`."""
        start = starting_point(resume)
        load(start.checkpoint)
        say = self._progress.message
        say(f"resumed from {start.checkpoint} at step {self._recorder.state.step}")
        if changed := measures_changed(self._config, start):
            self._recorder.forget_evaluations()
            say(f"evaluations measure something else than before ({', '.join(changed)}): baseline and best begin anew")
        elif why := self._recorder.carry_over(start):
            say(why)

    def _tell(self, collected: Collected) -> None:
        say, state = self._progress.message, self._recorder.state
        if lost := collected.lost:
            say(f"{len(lost)} episodes were lost and replaced; the last: {lost[-1]}")
        if dropped := collected.dropped:
            say(f"{len(dropped)} groups were dropped: they came too late for rollout.max_staleness")
        if not collected.kept:
            say(
                f"nothing to learn in step {state.step + 1}: {nothing_to_learn(collected)}; "
                f"the policy stays at version {state.policy_version}"
            )

    def _from_baseline(self, training: Training) -> tuple[str, EvalRecord | None]:
        recorder = self._recorder
        latest: EvalRecord | None = None
        reason: str | None = None
        if recorder.baseline_due:
            latest, reason = self.evaluate_split("seeds")
            self.evaluate_split("templates")
        elif recorder.evaluation_missed:
            latest, reason = self.evaluate_split("seeds")
        reason = reason or recorder.out_of_budget()
        return training() if reason is None else (reason, latest)
