"""One call of `compare.py`: what is compared, training what is missing, the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.compare.comparison import compare
from trainers.compare.launch import Display, open_display, run
from trainers.compare.options import CompareConfig
from trainers.compare.plan import Found, Planned, find, named_runs, plan, report_directory, without_beginnings
from trainers.compare.runs import load_run
from trainers.config import ConfigError
from trainers.config.texts import quoted
from trainers.run.directory import display_path


@dataclass(frozen=True)
class Session:
    """The runs of a comparison, planned or given, the command that trains one, and where the report goes."""

    options: CompareConfig
    planned: Sequence[Planned]
    given: Sequence[Path]
    train: Sequence[str]
    directory: Path

    def train_missing(self) -> list[str]:
        """Run what has not finished yet, all of it even if some fails; returns a line for each failure."""
        found = find(self.planned)
        missing = [(each, there) for each, there in zip(self.planned, found, strict=True) if there.finished is None]
        if not missing:
            return []
        print(f"{len(self.planned) - len(missing)} of {len(self.planned)} runs are there, training the others")
        display = open_display(len(missing))
        try:
            failures = [self._train(each, there, display) for each, there in missing]
        finally:
            display.close()
        return [failure for failure in failures if failure is not None]

    def _train(self, planned: Planned, found: Found, display: Display) -> str | None:
        resume = [] if found.interrupted is None else [f"resume={quoted(str(found.interrupted))}"]
        log = self.directory / "logs" / f"{planned.label.replace(' ', '-')}.log"
        display.start(planned.label)
        why = run([*self.train, *planned.overrides, *resume], log, display.line)
        display.end(why or "finished")
        return why and f"{planned.label}: {why} (output: {display_path(log)})"

    def write(self, failures: Sequence[str]) -> str | None:
        """Write the report of everything that is there; what was found and where it is, None when that is nothing."""
        from trainers.compare.picture import sentences
        from trainers.compare.report import write_report

        directories = [each.finished for each in find(self.planned) if each.finished is not None]
        runs = [load_run(directory) for directory in (*directories, *self.given)]
        if not runs:
            return None
        notes = [f"Failed: {failure}" for failure in failures]
        comparison = compare(runs, self.options.target, self.options.margin, notes)
        try:
            files = write_report(comparison, self.directory)
        except OSError as error:
            raise ConfigError(f"out={self.directory}: cannot write the report: {error.strerror}") from error
        places = [f"  {display_path(file)}" for file in files]
        return "\n".join([*sentences(comparison), *comparison.notes, "", "The report:", *places])


def prepare(options: CompareConfig, overrides: Sequence[str], train: Sequence[str]) -> Session:
    """Check everything that can be checked before a run starts. Raises `ConfigError`."""
    planned = plan(options, overrides) if options.backends else []
    given = named_runs(options.runs)
    for directory in given:
        load_run(directory)
    given, notes = without_beginnings(given)
    for note in notes:
        print(note)
    return Session(options, planned, given, train, report_directory(options, planned, given))
