"""Draws docs/images/structure.svg from the real imports: packages in the layers of `.importlinter`, arrows downwards.

python scripts/make_structure_picture.py
"""

from __future__ import annotations

import ast
import configparser
import textwrap
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images" / "structure.svg"
LEFT_OUT = {"trainers.curves"}
"""Commands that only parse arguments."""
AGENT_LAYERS = (
    ("cua_agent.cloning",),
    ("cua_agent.agent",),
    ("cua_agent.envs", "cua_agent.inference", "cua_agent.trajectory"),
    ("cua_agent.tasks", "cua_agent.models"),
    ("cua_agent.parsing",),
    ("cua_agent.actions",),
)
COLUMNS = {"compare": 0, "legacy": 2, "components": 2, "distributed": 0, "config": 0, "cloning": 2, "envs": 0}
COLUMNS |= {"trajectory": 2, "tasks": 0, "episodes": 2, "watch": 2, "timeline": 2}
"""Of three, for what does not stand in the middle."""
WIDTH, BOX_W, BOX_H, ROW_H, MARGIN = 1000, 296, 72, 108, 24
STYLE = "font-family='system-ui, sans-serif' fill='#1f2937'"


@dataclass(frozen=True)
class Box:
    """A package or module at a place of the picture; `x`, `y` in pixels, its upper left corner."""

    module: str
    x: float
    y: float

    @property
    def top(self) -> tuple[float, float]:
        """Where arrows arrive."""
        return self.x + BOX_W / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """Where arrows start."""
        return self.x + BOX_W / 2, self.y + BOX_H


def layers() -> list[tuple[str, ...]]:
    """The rows of the picture, from top to bottom."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    lines = contracts["importlinter:contract:layers"]["layers"].split("\n")
    rows = [tuple(f"trainers.{name.strip()}" for name in line.split("|")) for line in lines if line.strip()]
    rows = [tuple(name for name in row if name not in LEFT_OUT) for row in rows]
    return [row for row in (*rows, *AGENT_LAYERS) if row]


def arrows(modules: list[str]) -> list[tuple[str, str]]:
    """(importer, imported) between the modules (packages with all they hold), without those that others imply."""
    graph = grimp.build_graph("cua_agent", "trainers")
    uses = {
        one: {
            other
            for other in modules
            if one != other and graph.find_shortest_chains(importer=one, imported=other, as_packages=True)
        }
        for one in modules
    }
    return sorted(
        (one, other) for one in modules for other in uses[one] if not any(other in uses[via] for via in uses[one])
    )


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(words.split("\n\n")[0].split()).replace("`", "").rstrip(".")


def draw_box(box: Box) -> str:
    """A rounded rectangle with the module's name and what it is for."""
    colour = "#eef2ff" if box.module.startswith("trainers") else "#ecfdf5"
    x, y = box.x, box.y
    lines = textwrap.wrap(summary(box.module), 46, max_lines=3, placeholder=" ...")
    said = "".join(
        f"<text x='{x + 12:.0f}' y='{y + 36 + 14 * i:.0f}' font-size='11' {STYLE}>{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    return (
        f"<rect x='{x:.0f}' y='{y:.0f}' width='{BOX_W}' height='{BOX_H}' rx='8' fill='{colour}' stroke='#9ca3af'/>"
        f"<text x='{x + 12:.0f}' y='{y + 20:.0f}' font-size='14' font-weight='600' {STYLE}>{escape(box.module)}</text>"
        f"{said}"
    )


def draw_arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A curve from the bottom of a box to the top of another."""
    (x0, y0), (x1, y1) = start, end
    bend = (y1 - y0) / 2
    path = f"M{x0:.0f},{y0:.0f} C{x0:.0f},{y0 + bend:.0f} {x1:.0f},{y1 - bend:.0f} {x1:.0f},{y1 - 3:.0f}"
    return f"<path d='{path}' fill='none' stroke='#6b7280' stroke-width='1.2' marker-end='url(#head)'/>"


def render() -> str:
    """The picture as SVG."""
    boxes: dict[str, Box] = {}
    rows, gap = layers(), (WIDTH - 3 * BOX_W) / 4
    for row, modules in enumerate(rows):
        for module in modules:
            column = COLUMNS.get(module.rpartition(".")[2], 1)
            boxes[module] = Box(module, gap + column * (BOX_W + gap), MARGIN + row * ROW_H)
    height = 2 * MARGIN + len(rows) * ROW_H - (ROW_H - BOX_H)
    lines = [draw_arrow(boxes[one].bottom, boxes[other].top) for one, other in arrows(list(boxes))]
    head = (
        "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0,0 L8,4 L0,8 z' fill='#6b7280'/></marker></defs>"
    )
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' width='{WIDTH}'>",
            "<title>Packages and their imports; every arrow points down</title>",
            head,
            f"<rect width='{WIDTH}' height='{height:.0f}' fill='white'/>",
            *lines,
            *map(draw_box, boxes.values()),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(TARGET)
