"""The files of a report: the page, the text, the tables, the pictures."""

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.compare_rig import evaluation, learning_run, row, settings, write_run
from trainers.compare.charts import draw_sections
from trainers.compare.comparison import Comparison, compare
from trainers.compare.page import write_page
from trainers.compare.picture import draw_picture
from trainers.compare.runs import load_run
from trainers.compare.style import looks, spread
from trainers.compare.tables import write_curves, write_figures
from trainers.compare.text import markdown


def three_seeds(directory: Path) -> Comparison:
    runs = [learning_run(directory / f"{b}-{seed}", b, seed) for b in ("legacy", "areal") for seed in range(3)]
    return compare([load_run(each) for each in runs], target=0.9, margin=0.05)


class Page(HTMLParser):
    """What a page would load, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = write_page(three_seeds(tmp_path), tmp_path / "compare.html").read_text()
    page = Page(text)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text).replace('http-equiv="Content-Security-Policy"', "")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.loads) == 21
    for uri in page.loads:
        kind, _, content = uri.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        assert svg.rstrip().endswith("</svg>")
        assert set(re.findall(r'href="(.)', svg)) <= {"#"}
        assert "<metadata>" not in svg
        assert not re.search(r"url\((?!#)", svg)
    assert "GO" in page.texts
    for title in ("Final figures", "Runs", "Configuration: the keys that differ", "Log-prob gap", "Entropy", "Loss"):
        assert title in page.texts


def test_text_from_runs_is_escaped_and_tables_stay_tables(tmp_path: Path, monkeypatch) -> None:
    runs = [
        write_run(tmp_path / "a", settings(model__path="<script>|x"), [row(1)], [evaluation(1, 0.5)], {}),
        write_run(tmp_path / "b", settings(model__path="tiny"), [row(1)], [evaluation(1, 0.5)], {}),
    ]
    monkeypatch.setattr("trainers.compare.page.draw_sections", lambda _: [])
    comparison = compare([load_run(each) for each in runs], 0.9, 0.05, ["<b>note</b>"])
    page = Page(write_page(comparison, tmp_path / "compare.html").read_text())
    assert not {"script", "b"} & set(page.tags)
    assert "Note: <b>note</b>" in page.texts
    table = [line for line in markdown(comparison, "compare.png").splitlines() if "`model.path`" in line]
    assert table == [r"| `model.path` | `<script>\|x` | `tiny` |"]


def test_the_text_and_the_tables_agree(tmp_path: Path) -> None:
    comparison = three_seeds(tmp_path)
    text = markdown(comparison, "compare.png")
    success = comparison.mean("success_end", comparison.candidates[0])
    assert success is not None
    assert f"areal phase 3 ends at {100 * success:.1f} % success" in text
    assert "![" in text and "](compare.png)" in text
    assert "| `rollout.max_staleness` | `–` | `2` |" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| success on unseen")}) == 1
    with write_figures(comparison, tmp_path / "compare.csv").open() as file:
        figures = {(line["figure"], line["arm"]): line for line in csv.DictReader(file)}
    line = figures["success_end", "areal phase 3"]
    assert float(line["mean"]) == success
    assert (line["runs"], line["unit"], line["against"], line["contrast"]) == ("3", "share", "legacy", "difference")
    assert float(line["low"]) <= success <= float(line["high"])
    assert figures["success_end", "legacy"]["contrast_value"] == ""
    assert float(figures["steps_per_hour", "areal phase 3"]["contrast_value"]) > 1


def test_the_curves_hold_every_step_of_every_run(tmp_path: Path) -> None:
    rows = [row(1, kl=None), row(2, extra=1.5)]
    directory = write_run(tmp_path / "a", settings(), rows, [evaluation(0, 0.25), evaluation(2, 0.5, "templates")], {})
    with write_curves(compare([load_run(directory)], 0.9, 0.05), tmp_path / "curves.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["step"] for line in lines] == ["0", "1", "2"]
    assert [line["eval_seeds"] for line in lines] == ["0.25", "", ""]
    assert lines[2]["eval_templates"] == "0.5"
    assert [line["episodes_spent"] for line in lines] == ["0.0", "64.0", "128.0"]
    assert [line["extra"] for line in lines] == ["", "", "1.5"]
    assert {line["kl"] for line in lines} == {""}


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["unfinished", "no evaluation", "bare rows", "many arms", "long"])
def test_runs_in_any_state_make_a_report(case: str, tmp_path: Path) -> None:
    directories = []
    if case == "unfinished":
        for backend in ("legacy", "areal"):
            directories.append(learning_run(tmp_path / backend, backend))
            (directories[-1] / "summary.json").unlink()
    elif case == "no evaluation":
        directories = [write_run(tmp_path / b, settings(b), [row(1)], [], {}) for b in ("legacy", "areal")]
    elif case == "bare rows":
        directories = [write_run(tmp_path / b, settings(b), [{"step": 1}], [], {}) for b in ("legacy", "areal")]
    elif case == "many arms":
        directories = [learning_run(tmp_path / f"a{n}", steps=6, optim__learning_rate=n * 1e-4) for n in range(1, 10)]
    else:
        directories = [learning_run(tmp_path / b, b, steps=150, every=30) for b in ("legacy", "areal")]
    comparison = compare([load_run(directory) for directory in directories], 0.9, 0.05)
    assert draw_picture(comparison, tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "nan" not in markdown(comparison, "compare.png")
    if case in ("unfinished", "bare rows"):
        assert len([chart for section in draw_sections(comparison) for chart in section.charts]) == 21


def test_names_at_line_ends_keep_their_distance_and_order() -> None:
    assert spread([0.1, 0.9], 0.2) == [0.1, 0.9]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.75, 0.5, 0.55], 0.2) == pytest.approx([0.8, 0.4, 0.6])


def test_a_backend_keeps_its_colour_and_no_two_arms_share_one(tmp_path: Path) -> None:
    arms = three_seeds(tmp_path).arms
    assert [look.colour for look in looks(arms)] == ["#D55E00", "#0072B2"]
    assert looks(arms[1:]) == looks(arms)[1:]
