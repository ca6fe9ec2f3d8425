"""Running `train.py` for what a comparison misses: one run after the other, watched, logged, interruptible."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_STEP = re.compile(r"^step (\d+)/(\d+)\b")
_TOLD = ("step ", "evaluation ", "resumed ", "error: ")
_SAVING_S = 120.0  # what an interrupted run may take to save


class Display(Protocol):
    """What a person sees of the runs."""

    def start(self, label: str) -> None:
        """A run begins."""
        ...

    def line(self, text: str) -> None:
        """The run said something."""
        ...

    def end(self, outcome: str) -> None:
        """A run ended."""
        ...

    def close(self) -> None:
        """All runs ended."""
        ...


def open_display(total: int, console: Console | None = None) -> Display:
    """Bars when `console` (standard output) is a terminal, plain lines otherwise."""
    console = console or Console(highlight=False)
    return BarDisplay(console, total) if console.is_terminal else PlainDisplay(console, total)


class PlainDisplay:
    """Steps, evaluations and errors of a run behind its number and label; the rest is in its log."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._number = 0
        self._label = ""

    def start(self, label: str) -> None:
        """Print a line."""
        self._number += 1
        self._label = label

    def line(self, text: str) -> None:
        if text.startswith(_TOLD):
            self._print(text)

    def end(self, outcome: str) -> None:
        """Print a line."""
        self._print(outcome)

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(f"[{self._number}/{self._total} {self._label}] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()


class BarDisplay:
    """A bar for the runs and one for the steps of the present run; what ended stays above."""

    def __init__(self, console: Console, total: int) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}", markup=False, style="dim"),
            console=console,
            transient=True,
        )
        self._runs = self._bars.add_task("runs", total=total, said="")
        self._steps = self._bars.add_task("", total=None, said="")
        self._label = ""
        self._bars.start()

    def start(self, label: str) -> None:
        """A bar of its own for the run."""
        self._label = label
        self._bars.reset(self._steps, description=label, total=None, said="starting")

    def line(self, text: str) -> None:
        if step := _STEP.match(text):
            self._bars.update(self._steps, completed=int(step[1]), total=int(step[2]))
            text = text[step.end() :].strip()
        self._bars.update(self._steps, said=text)

    def end(self, outcome: str) -> None:
        """Say how the run ended, above the bars."""
        self._bars.console.print(f"{self._label}: {outcome}", markup=False)
        self._bars.advance(self._runs)

    def close(self) -> None:
        self._bars.stop()


def run(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> str | None:
    """Run a command to its end, its output in `log` and line by line in `on_line`; None, or what went wrong.

    A KeyboardInterrupt is handed on to the command, which gets time to save, and then raised again.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # A session of its own: Ctrl-C in a terminal must reach the run once, through us, and not a second time by itself.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    last_error = ""
    try:
        assert process.stdout is not None  # piped above
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if text := line.strip():
                    last_error = text.removeprefix("error: ") if text.startswith("error: ") else last_error
                    on_line(text)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    return None if status == 0 else _reason(status, last_error)


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_SAVING_S)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _reason(status: int, last_error: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return last_error or ("interrupted" if status == 130 else f"exit status {status}")
