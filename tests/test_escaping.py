"""Foreign text in reports: it reads as it was, and is nothing but text."""

import csv
import io
from pathlib import Path

import pytest
from compare_rig import evaluation, row, settings, write_run
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trainers.compare.comparison import compare
from trainers.compare.escaping import code, csv_cell, prose
from trainers.compare.runs import load_run
from trainers.compare.tables import write_figures
from trainers.compare.text import markdown
from trainers.run.curves import draw, read_curve

RENDERER = MarkdownIt("commonmark").enable("table")
HOSTILE = st.lists(
    st.sampled_from(
        [
            *"<>&|`*_[](){}!#+-=.~\\\"'$:@/ \n\r\t1ab",
            "<script>",
            "](javascript:x)",
            "&lt;",
            "**",
            "___",
            "```",
            "![",
            "--",
        ]
    ),
    max_size=12,
).map("".join)


def rendered(markup: str, *wanted: str) -> list[str]:
    """The texts in the inline elements of `markup`; only tokens of the kinds `wanted` may be among them."""
    texts = []
    for token in RENDERER.parse(markup):
        assert token.type not in ("html_block", "fence", "code_block", "hr")
        for part in token.children or ():
            assert part.type in ("text", "text_special", *wanted), part
        if token.type == "inline":
            texts.append("".join(part.content for part in token.children or ()))
    return texts


@given(HOSTILE)
def test_prose_reads_as_it_was_and_holds_no_markup(text: str) -> None:
    line = " ".join(text.split())
    assert rendered(prose(text)) == ([line] if line else [])
    assert rendered(f"# {prose(text)}.") == [f"{line}."]
    assert rendered(f"| a | b |\n|---|---|\n| {prose(text)} | x |") == ["a", "b", line, "x"]


@given(HOSTILE)
def test_code_stays_one_span_in_its_cell(text: str) -> None:
    line = " ".join(text.split())
    texts = rendered(f"| a | b |\n|---|---|\n| {code(text or 'x')} | y |", "code_inline")
    assert texts == ["a", "b", line or texts[2], "y"]


@given(HOSTILE)
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text), csv_cell(-1.5)])
    read, number = next(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert not read.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert read.removeprefix("'") == text.removeprefix("'")
    assert number == "-1.5"


def test_reports_hold_names_as_text(tmp_path: Path) -> None:
    name, path = "b<img src=x>|[y](javascript:z)", "$\\foo$ <script> `|\n=cmd"
    runs = [
        write_run(tmp_path / name, settings(model__path=path), [row(1)], [evaluation(1, 0.5)], {}),
        write_run(tmp_path / "a", settings(model__path="=cmd()"), [row(1)], [evaluation(1, 0.5)], {}),
    ]
    comparison = compare([load_run(each) for each in runs], 0.9, 0.05, ["<b>note</b>\n# heading"])
    text = markdown(comparison, "compare.png")
    texts = rendered(text, "image", "code_inline", "strong_open", "strong_close")
    assert {name, "<b>note</b> # heading", " ".join(path.split())} <= set(texts)
    write_figures(comparison, tmp_path / "compare.csv")
    assert "\n=" not in (tmp_path / "compare.csv").read_text()


@pytest.mark.slow
def test_curves_draw_a_name_that_looks_like_a_formula(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a$\\foo$", settings(), [row(1)], [evaluation(1, 0.5)], {})
    assert draw([read_curve(run)], tmp_path / "curve.png").is_file()
