"""An episode as one self-contained HTML page: every screenshot with the action drawn on it, and what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from cua_agent.actions import COORDINATE_MAX
from cua_agent.agent import Episode
from cua_agent.image_bytes import png_uri

TEMPLATE = "trace.html.j2"


@dataclass(frozen=True)
class _Shot:
    """A screenshot as the page shows it; `marker` is where the action landed, in percent of width and height."""

    uri: str
    width: int
    height: int
    marker: tuple[float, float] | None = None


def render_trace(episode: Episode, facts: Mapping[str, object]) -> str:
    """The page. `facts` are further lines of its heading, for example the model. All text is escaped, and a content
    security policy keeps the page from loading or running anything."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        episode=episode,
        facts=facts,
        shots=[_shot(turn.screenshot, turn.point) for turn in episode.turns],
        final=_shot(episode.final_screenshot, None),
        generate_s=_total(episode, "generate_s"),
        env_s=_total(episode, "env_s"),
    )


def write_trace(path: Path, episode: Episode, facts: Mapping[str, object]) -> None:
    """Write the page to `path`."""
    # Model output may hold half a surrogate pair, which no file can.
    path.write_text(render_trace(episode, facts), encoding="utf-8", errors="replace")


def _shot(image: Image.Image | None, point: tuple[int, int] | None) -> _Shot | None:
    if image is None:
        return None
    # A pixel's middle: coordinates 0..1000 divide the screen into 1001 equal steps.
    marker = None if point is None else tuple(100 * (value + 0.5) / (COORDINATE_MAX + 1) for value in point)
    return _Shot(png_uri(image), image.width, image.height, marker)  # type: ignore[arg-type]


def _total(episode: Episode, name: str) -> float:
    values: list[float] = [getattr(turn, name) for turn in episode.turns]
    return sum(values)
