"""`compare.html`: one file that holds everything and loads nothing."""

from __future__ import annotations

from pathlib import Path

from cua_agent.image_bytes import image_uri
from trainers.compare import words
from trainers.compare.charts import Chart, draw_sections
from trainers.compare.comparison import Comparison
from trainers.compare.picture import footnote, sentences, title
from trainers.compare.samples import samples_of
from trainers.compare.style import looks
from trainers.compare.tables import figure_table, run_table

TEMPLATE = "page.html.j2"


def write_page(comparison: Comparison, output: Path) -> Path:
    """Write the page. All text is escaped; a content security policy keeps it from loading or running anything."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=title(comparison),
        sentences=sentences(comparison),
        footnote=footnote(comparison),
        arms=[arm.label for arm in comparison.arms],
        colours=[look.colour for look in looks(comparison.arms)],
        verdicts=list(zip([arm.label for arm in comparison.candidates], comparison.verdicts, strict=True)),
        sections=list(draw_sections(comparison)),
        uri=_uri,
        figures=figure_table(comparison),
        settings=comparison.settings,
        runs=run_table(comparison),
        samples=samples_of(comparison.arms),
        notes=comparison.notes,
        margin=words.points(-comparison.margin),
    )
    output.write_text(page, encoding="utf-8")
    return output


def _uri(chart: Chart) -> str:
    return image_uri(chart.svg, "svg+xml")
