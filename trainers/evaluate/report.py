"""An evaluation as a JSON file and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainers.compare import words
from trainers.compare.bootstrap import Estimate
from trainers.config import ConfigError
from trainers.config.saved import settings_of
from trainers.evaluate.figures import ALL, Figure, Figures
from trainers.evaluate.options import EvaluateConfig
from trainers.evaluate.playing import Start
from trainers.evaluate.subject import Subject

_MEASURED = ("env.", "model.", "rollout.max_turns", "rollout.temperature", "rollout.greedy", "rollout.context",
             "rollout.last_k", "rollout.max_new_tokens", "inference.name", "backend", "seed")  # fmt: skip
"""Keys, and beginnings of keys, that a figure depends on."""


@dataclass(frozen=True)
class Evaluated:
    """A subject, its starts, and the figures of them."""

    subject: Subject
    starts: Sequence[Start]
    figures: Mapping[str, Figures]


def as_json(
    options: EvaluateConfig, done: Evaluated, other: Evaluated | None, contrast: Mapping[str, Figures]
) -> dict[str, Any]:
    """The content of the file; rates are shares of 1."""
    content = {"split": options.split, "k": options.k, "episodes": len(done.starts), **_subject_json(done)}
    if other is not None:
        content["against"] = _subject_json(other)
        content["difference"] = figures_json(contrast)
    return content


def _subject_json(done: Evaluated) -> dict[str, Any]:
    subject, starts = done.subject, done.starts
    settings = settings_of(subject.config)
    return {
        "checkpoint": subject.name,
        "step": subject.step,
        "played": sum(len(start.plays) for start in starts),
        "lost": sum(len(start.lost) for start in starts),
        "figures": figures_json(done.figures),
        "settings": {key: value for key, value in settings.items() if key.startswith(_MEASURED)},
        "starts": [
            {
                "task": start.task,
                "category": start.category,
                "seed": start.seed,
                "episodes": [
                    {"outcome": play.outcome.value, "score": play.score, "turns": play.turns} for play in start.plays
                ],
            }
            for start in starts
        ],
    }


def figures_json(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Figures as plain data."""
    return {
        name: {key: None if estimate is None else _estimate_json(estimate) for key, estimate in of.items()}
        for name, of in figures.items()
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    known = asdict(estimate)
    return {"mean": known["mean"], "low": known["low"], "high": known["high"], "starts": known["runs"]}


def file_to_write(options: EvaluateConfig, subject: Subject, now: datetime | None = None) -> Path:
    """Where the JSON goes. Raises `ConfigError` for what cannot be written there."""
    if options.out is None:
        return (subject.run or Path()) / f"evaluate-{now or datetime.now():%Y%m%d-%H%M%S}.json"
    file = Path(options.out).expanduser()
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"out={options.out}: allowed: a file in a directory that is there")
    return file


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write the file whole or not at all. Raises `OSError`."""
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def show(console: Console, figures: Sequence[Figure], done: Evaluated) -> None:
    """A table of one evaluation."""
    starts, step = done.starts, done.subject.step
    played, lost = sum(len(start.plays) for start in starts), sum(len(start.lost) for start in starts)
    title = f"{done.subject.name}{'' if step is None else f' (step {step})'}: {played} episodes of {len(starts)} starts"
    _print(
        console,
        title + (f", {lost} more were lost" if lost else ""),
        _table(figures, done.figures, words.with_interval),
    )


def show_difference(
    console: Console, figures: Sequence[Figure], done: Evaluated, other: Evaluated, contrast: Mapping[str, Figures]
) -> None:
    """A table of the differences of two evaluations, and what may be said of them."""
    title = f"{done.subject.name} less {other.subject.name}, in pairs of the same start"
    _print(console, title, _table(figures, contrast, words.difference))
    console.print(Text(verdict(contrast[ALL]["success"])), soft_wrap=True)


def verdict(success: Estimate | None) -> str:
    """What the interval of a difference of success allows to say."""
    if success is None or success.low is None or success.high is None:
        return "Not judged: there are not enough pairs."
    if success.low <= 0 <= success.high:
        return "Undecided: the interval of the difference holds 0."
    return f"{'Better' if success.low > 0 else 'Worse'}: the interval of the difference does not hold 0."


def _table(figures: Sequence[Figure], parts: Mapping[str, Figures], words_of: Any) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", min_width=max(map(len, parts)))
    table.add_column("starts", justify="right")
    for figure in figures:
        table.add_column(figure.title, justify="right")
    for name, of in parts.items():
        cells = [_cell(of[figure.key], figure, words_of) for figure in figures]
        runs = next((estimate.runs for estimate in of.values() if estimate is not None), 0)
        table.add_row(Text(name), str(runs), *map(Text, cells))
    return table


def _cell(estimate: Estimate | None, figure: Figure, words_of: Any) -> str:
    return "–" if estimate is None else words_of(estimate, figure.unit)


def _print(console: Console, title: str, table: Table) -> None:
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
