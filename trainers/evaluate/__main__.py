"""``python -m trainers.evaluate checkpoint=outputs/RUN [against=...] [tasks=...] [episodes=...] [k=8]``"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cua_agent.exit_status import BAD_CONFIGURATION, DONE
from cua_agent.secrets import masked_output
from trainers.command.ending import check_options, exit_status_of
from trainers.command.process import prepare_process
from trainers.config.presets import joined_options
from trainers.evaluate.options import EvaluateConfig, help_text
from trainers.protocol import OnDone
from trainers.run.commands import typed


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"--help", "-h"} & set(arguments):
        text = help_text(shlex.join(typed("trainers.evaluate")))
        print(text, file=sys.stdout if arguments else sys.stderr)
        return DONE if arguments else BAD_CONFIGURATION
    return exit_status_of(lambda: _evaluate(arguments), interrupted="interrupted")


def _evaluate(arguments: Sequence[str]) -> int:
    from trainers.config.own_keys import read_own

    arguments = joined_options(arguments)
    check_options(arguments)
    options, directories, overrides = read_own(EvaluateConfig, arguments)
    return _play(options, [*directories, *overrides])


def _play(options: EvaluateConfig, overrides: Sequence[str]) -> int:
    from rich.console import Console

    from trainers.evaluate.figures import differences, figures_for, measured
    from trainers.evaluate.playing import evaluate_subject, tasks_of
    from trainers.evaluate.report import Evaluated, as_json, file_to_write, show, show_difference, write_json
    from trainers.evaluate.subject import Subject, find_subject, measured_alike
    from trainers.run.directory import display_path
    from trainers.run.requirements import check_requirements

    first = find_subject("checkpoint", options.checkpoint, overrides)
    subjects = [first]
    if options.against is not None:
        subjects.append(measured_alike(find_subject("against", options.against, overrides), first))
    tasks = tasks_of(first.config, options.split, options.tasks)
    file = file_to_write(options, first)
    prepare_process(first.config)
    for subject in subjects:
        check_requirements(subject.config)
    figures, starts = figures_for(options.k), options.episodes or first.config.eval.episodes

    def evaluated(subject: Subject) -> Evaluated:
        with _bar(subject.name) as on_done:
            played = evaluate_subject(subject, tasks, starts, options.k, on_done)
        return Evaluated(subject, played, measured(played, figures))

    console = Console(highlight=False)
    done, *others = [evaluated(subject) for subject in subjects]
    other = others[0] if others else None
    contrast = differences(done.starts, other.starts, figures) if other else {}
    for each in (done, *others):
        show(console, figures, each)
    if other is not None:
        show_difference(console, figures, done, other, contrast)
    write_json(file, as_json(options, done, other, contrast))
    print(display_path(file))
    return DONE


@contextmanager
def _bar(name: str) -> Iterator[OnDone]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
