"""The page of a comparison in a real browser: what it shows side by side, its layout, that it asks nobody."""

from pathlib import Path

from tests.test_compare_samples import HOSTILE, recorded
from tests.watch_browser_rig import browsing, needs_browser
from trainers.compare.page import write_page

pytestmark = needs_browser
COLUMNS = """
[...document.querySelectorAll(".charts")].map((section) => {
  const tops = [...section.children].map((chart) => Math.round(chart.getBoundingClientRect().top));
  return [...new Set(tops)].map((top) => tops.filter((other) => other === top).length);
})
"""
"""Of each section, how many charts each of its rows has."""


def test_the_page_has_no_holes_and_no_scrollbar_at_any_width(tmp_path: Path) -> None:
    page_file = write_page(recorded(tmp_path), tmp_path / "compare.html")
    with browsing(page_file.as_uri()) as pages:
        for width, columns in ((1200, 3), (800, 1), (360, 1)):
            pages.page.set_viewport_size({"width": width, "height": 900})
            pages.page.goto(pages.base)
            assert pages.page.evaluate("document.documentElement.scrollWidth") <= width
            assert pages.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
            rows = pages.page.evaluate(COLUMNS)
            assert len(rows) == 5 and all(count == columns for section in rows for count in section), (width, rows)
        assert HOSTILE in pages.texts(".sample h3")[0] and pages.page.evaluate("window.planted") is None
        assert pages.texts(".films .mark")[:2] == ["success", "false claim"]
        assert all(address.startswith(("file:", "data:")) for address in pages.asked)
