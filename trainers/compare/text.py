"""`compare.md`: the comparison as text, with the picture in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from trainers.compare.comparison import Comparison
from trainers.compare.escaping import code, prose
from trainers.compare.picture import footnote, sentences, title
from trainers.compare.tables import figure_table, run_table


def markdown(comparison: Comparison, picture: str) -> str:
    """The text; `picture` is the address of the picture, relative to it."""
    return "\n\n".join(_blocks(comparison, picture)) + "\n"


def _blocks(comparison: Comparison, picture: str) -> Iterator[str]:
    answer = f" ({comparison.verdicts[0].decision})" if len(comparison.verdicts) == 1 else ""
    yield f"# {prose(title(comparison))}{answer}"
    yield from map(prose, sentences(comparison))
    yield f"![{prose(title(comparison))}]({picture})"
    yield prose(footnote(comparison))
    if comparison.notes:
        yield "\n".join(f"- {prose(note)}" for note in comparison.notes)
    yield "## Final figures"
    table = figure_table(comparison)
    yield _table(map(prose, table.heading), (map(prose, row) for row in table.rows))
    for arm, verdict in zip(comparison.candidates, comparison.verdicts, strict=True):
        yield f"## Gates for {prose(arm.label)}: {verdict.decision}"
        rows = [
            ("pass" if check.passed else f"**{check.word}**", prose(check.name), prose(check.reason))
            for check in verdict.checks
        ]
        yield _table(("", "gate", "measured"), rows)
    yield "## Configuration: the keys that differ"
    yield _settings(comparison)
    yield "## Runs"
    runs = run_table(comparison)
    yield _table(runs.heading, (map(prose, row) for row in runs.rows))


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return "None: all runs have the same configuration."
    rows = [(code(key), *map(code, values)) for key, values in comparison.settings]
    return _table(("key", *(prose(arm.label) for arm in comparison.arms)), rows)


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are Markdown already."""
    first = list(heading)
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(first), *rows))


def write_text(comparison: Comparison, output: Path, picture: Path) -> Path:
    """Write the text beside its picture."""
    output.write_text(markdown(comparison, picture.name), encoding="utf-8")
    return output
