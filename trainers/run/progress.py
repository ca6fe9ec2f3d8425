"""What a person sees of a run: one live panel in a terminal, one plain line per event anywhere else."""

from __future__ import annotations

import math
import time

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from trainers.protocol import EvalRecord
from trainers.run.metrics import NAN, ProgressReporter, StepMetrics


def open_progress(max_steps: int, console: Console | None = None) -> ProgressReporter:
    """A live panel when `console` (standard output) is a terminal, plain lines otherwise."""
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
    """One panel: the run's bar and that of its present phase, the figures of the last step, and the last event.
    Evaluations and messages stay above it."""

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
        self._event = Text(style="dim", no_wrap=True, overflow="ellipsis")
        first = self._panel(Text("loading the model", style="dim"))
        self._live = Live(first, console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def phase(self, name: str, done: int, total: int) -> None:
        if name != self._phase_name or done < self._bars.tasks[1].completed:
            self._phase_name = name
            self._bars.reset(self._phase, description=name, total=total, completed=done)
        self._bars.update(self._phase, total=total, completed=done)

    def step(self, metrics: StepMetrics, max_steps: int) -> None:
        self._bars.update(self._steps, completed=metrics.step, total=max_steps)
        figures = [Text.assemble((f"{name} ", "dim"), value, no_wrap=True) for name, value in step_figures(metrics)]
        self._live.update(self._panel(Columns(figures, padding=(0, 3))))

    def evaluation(self, record: EvalRecord, split: str) -> None:
        self._tell(evaluation_line(record, split))

    def message(self, text: str) -> None:
        self._tell(text)

    def close(self) -> None:
        self._live.stop()

    def _panel(self, figures: RenderableType) -> Panel:
        return Panel(Group(self._bars, figures, self._event), border_style="dim")

    def _tell(self, text: str) -> None:
        self._console.print(text, markup=False)
        self._event.plain = f"{time.strftime('%H:%M')} {next(iter(text.splitlines()), '')}"


def step_figures(metrics: StepMetrics) -> list[tuple[str, str]]:
    """What a panel shows of the last step: names and values."""
    waited = metrics.rollout_s / metrics.step_s if metrics.step_s else NAN
    figures = [
        ("success", _percent(metrics.success_rate)),
        ("reward", _number(metrics.reward_mean)),
        ("waiting", _percent(waited)),
        ("devices in use", _percent(metrics.env_utilisation)),
        ("staleness", f"{metrics.staleness_mean:.1f}, at most {metrics.staleness_max}"),
        ("step", f"{metrics.step_s:.1f} s"),
    ]
    if metrics.episodes_infra_error:
        figures.append(("lost episodes", str(metrics.episodes_infra_error)))
    return figures


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
