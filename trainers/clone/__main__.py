"""``python -m trainers.clone [fresh=true] [source=oracle|outputs/RUN] [minutes=8] [key=value ...]``"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cua_agent.exit_status import DONE
from cua_agent.secrets import masked_output
from trainers.clone.options import CloneConfig, help_text
from trainers.command.ending import check_options, exit_status_of
from trainers.command.process import prepare_process
from trainers.config import ConfigError, TrainConfig
from trainers.config.presets import joined_options
from trainers.run.commands import typed

if TYPE_CHECKING:
    from trainers.clone.training import OnStep

ABOUT = "clone.json"
_LINES = 10  # of progress, where there is no terminal


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(arguments):
        print(help_text(shlex.join(typed("trainers.clone"))))
        return DONE
    return exit_status_of(lambda: _clone(arguments), interrupted="interrupted; nothing was written")


def _clone(arguments: Sequence[str]) -> int:
    from trainers.config.compose import load_config
    from trainers.config.overrides import key_of
    from trainers.config.own_keys import read_own

    arguments = joined_options(arguments)
    check_options(arguments)
    options, directories, overrides = read_own(CloneConfig, arguments)
    for override in overrides:
        if key_of(override) == "resume":
            raise ConfigError(f"{override}: a clone begins with a model: model.path=<a checkpoint>")
    overrides = [*directories, *overrides]
    config = load_config(overrides)
    if options.fresh:
        config = replace(config, model=replace(config.model, freeze_vision=False))
    return _run(options, config, overrides)


def _run(options: CloneConfig, config: TrainConfig, overrides: Sequence[str]) -> int:
    out = _new_directory(options, config)
    prepare_process(config)
    from trainers.api import loading
    from trainers.clone.training import check_source, next_command, train_clone
    from trainers.config.compose import choices
    from trainers.run.directory import display_path
    from trainers.run.requirements import check_access

    check_source(options, config)
    check_access(config)
    with loading(config), _progress(options) as on_step:
        cloned = train_clone(options, config, out, on_step)
    print(
        f"{cloned.steps} steps, {cloned.examples:,} examples, {cloned.seconds / 60:.1f} min, loss {cloned.loss:.4f}: "
        f"{display_path(out)}",
        flush=True,
    )
    success = _success(config, out)
    about = {"options": asdict(options), "overrides": list(overrides), **asdict(cloned), "success": success}
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    words = next_command(typed("train"), str(display_path(out)), overrides, choices("model"))
    print(f"train it:\n  {shlex.join(words)}")
    return DONE


def _new_directory(options: CloneConfig, config: TrainConfig) -> Path:
    if options.out is None:
        return Path(config.output_dir).expanduser() / f"clone-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(options.out).expanduser()
    if out.exists():
        raise ConfigError(f"out={options.out}: is there already; allowed: a new directory")
    return out


def _success(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Success of the clone on held-out starts, by category, as a run would measure it; printed."""
    from rich.console import Console

    from trainers.evaluate.figures import figures_for, measured
    from trainers.evaluate.playing import evaluate_subject, tasks_of
    from trainers.evaluate.report import Evaluated, figures_json, show
    from trainers.evaluate.subject import model_subject

    subject = model_subject(str(out), config)
    starts = evaluate_subject(subject, tasks_of(config, "seeds", ()), config.eval.episodes, 1, lambda *_: None)
    figures = figures_for(1)
    found = measured(starts, figures)
    show(Console(highlight=False), figures, Evaluated(subject, starts, found))
    return figures_json(found)


@contextmanager
def _progress(options: CloneConfig) -> Iterator[OnStep]:
    """A bar where standard error is a terminal, some lines anywhere else."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console, started = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar, told = bars.add_task("cloning", total=1.0), 0
        recent: list[float] = []

        def on_step(step: int, loss: float, share: float) -> None:
            nonlocal told
            recent.append(loss)
            mean = sum(recent[-100:]) / len(recent[-100:])
            rate = step * options.batch / (time.monotonic() - started)
            words = f"step {step}  loss {mean:.4f}  {rate:.0f} examples/s"
            bars.update(bar, completed=min(share, 1.0), description=words)
            if not console.is_terminal and share * _LINES >= told + 1:
                told = int(share * _LINES)
                print(words, flush=True)

        yield on_step


if __name__ == "__main__":
    sys.exit(main())
