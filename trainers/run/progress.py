"""What a person sees of a run: bars and the last step in a terminal, one plain line per event anywhere else."""

from __future__ import annotations

import math

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from trainers.protocol import EvalRecord
from trainers.run.metrics import ProgressReporter, StepMetrics


def open_progress(max_steps: int, console: Console | None = None) -> ProgressReporter:
    """Live bars when `console` (standard output) is a terminal, plain lines otherwise."""
    console = console or Console(highlight=False)
    return LiveProgress(console, max_steps) if console.is_terminal else PlainProgress(console)


def silent_progress() -> ProgressReporter:
    """For a process that says nothing."""
    return PlainProgress(Console(quiet=True))


class PlainProgress:
    """One line per step, evaluation and message; phases are silent."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def phase(self, name: str, done: int, total: int) -> None:
        pass

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        self._line(step_line(metrics, max_steps))

    def evaluation(self, record: EvalRecord, split: str) -> None:
        self._line(evaluation_line(record, split))

    def message(self, text: str) -> None:
        self._line(text)

    def close(self) -> None:
        pass

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._console.file.flush()


class LiveProgress:
    """Bars for the run and for its present phase, the last step's figures between them; evaluations stay above."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self._steps = self._bars.add_task("steps", total=max_steps)
        self._phase = self._bars.add_task("starting", total=None)
        self._phase_name = "starting"
        self._last = Text("loading the model", style="dim")
        self._live = Live(Group(self._last, self._bars), console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def phase(self, name: str, done: int, total: int) -> None:
        if name != self._phase_name or done < self._bars.tasks[1].completed:
            self._phase_name = name
            self._bars.reset(self._phase, description=name, total=total, completed=done)
        self._bars.update(self._phase, total=total, completed=done)

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        self._bars.update(self._steps, completed=metrics.step, total=max_steps)
        self._last.plain = step_line(metrics, max_steps)
        self._last.style = "bold"

    def evaluation(self, record: EvalRecord, split: str) -> None:
        self._console.print(evaluation_line(record, split), markup=False)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def close(self) -> None:
        self._live.stop()


def step_line(metrics: StepMetrics, max_steps: int) -> str:
    """A step in one line."""
    groups = metrics.groups_kept + metrics.groups_filtered
    parts = [
        f"step {metrics.step}/{max_steps}",
        f"reward {_number(metrics.reward_mean)}",
        f"success {_percent(metrics.success_rate)}",
        f"groups {metrics.groups_kept}/{groups}",
        f"loss {_number(metrics.loss)}",
        f"rollout {metrics.rollout_s:.1f} s",
        f"train {metrics.train_s:.1f} s",
    ]
    if metrics.truncated > 0:
        parts.append(f"turns cut off {_percent(metrics.truncated)}")
    if metrics.episodes_infra_error:
        parts.append(f"lost episodes {metrics.episodes_infra_error}")
    if metrics.updates_skipped:
        parts.append(f"updates skipped {metrics.updates_skipped}")
    return "  ".join(parts)


def evaluation_line(record: EvalRecord, split: str) -> str:
    """An evaluation in one line."""
    return (
        f"evaluation at step {record.step} on unseen {split}: success {_percent(record.success_rate)} "
        f"of {record.episodes} episodes, {record.turns_mean:.1f} turns each"
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"
