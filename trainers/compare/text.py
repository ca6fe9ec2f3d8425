"""`compare.md`: the comparison as text, with the picture in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers.compare.comparison import Comparison
from trainers.compare.picture import footnote, sentences, title
from trainers.compare.tables import figure_table, run_table


def markdown(comparison: Comparison, picture: str) -> str:
    """The text; `picture` is the address of the picture, relative to it."""
    return "\n\n".join(_blocks(comparison, picture)) + "\n"


def _blocks(comparison: Comparison, picture: str) -> Iterator[str]:
    answer = f" ({comparison.verdicts[0].decision})" if len(comparison.verdicts) == 1 else ""
    yield f"# {title(comparison)}{answer}"
    yield from sentences(comparison)
    yield f"![{title(comparison)}]({picture})"
    yield footnote(comparison)
    if comparison.notes:
        yield "\n".join(f"- {note}" for note in comparison.notes)
    yield "## Final figures"
    table = figure_table(comparison)
    yield _table(table.heading, table.rows)
    for arm, verdict in zip(comparison.candidates, comparison.verdicts, strict=True):
        yield f"## Gates for {arm.label}: {verdict.decision}"
        rows = [("pass" if check.passed else f"**{check.word}**", check.name, check.reason) for check in verdict.checks]
        yield _table(("", "gate", "measured"), rows)
    yield "## Configuration: the keys that differ"
    yield _settings(comparison)
    yield "## Runs"
    runs = run_table(comparison)
    yield _table(runs.heading, runs.rows)


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return "None: all runs have the same configuration."
    rows = [(f"`{key}`", *(f"`{value}`" for value in values)) for key, values in comparison.settings]
    return _table(("key", *(arm.label for arm in comparison.arms)), rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def write_text(comparison: Comparison, output: Path, picture: Path) -> Path:
    """Write the text beside its picture."""
    output.write_text(markdown(comparison, picture.name), encoding="utf-8")
    return output
