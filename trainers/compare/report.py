"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from trainers.compare.comparison import Comparison
from trainers.compare.page import write_page
from trainers.compare.picture import draw_picture
from trainers.compare.tables import write_curves, write_figures
from trainers.compare.text import write_text


def write_report(comparison: Comparison, directory: Path) -> list[Path]:
    """Write page, text, tables and picture into `directory`, in place of an earlier report's; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    picture = draw_picture(comparison, directory / "compare.png")
    return [
        write_page(comparison, directory / "compare.html"),
        picture,
        write_text(comparison, directory / "compare.md", picture),
        write_figures(comparison, directory / "compare.csv"),
        write_curves(comparison, directory / "curves.csv"),
    ]
