"""A page in a browser: the handles of Playwright that drive it, and its screenshot."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cua_agent.actions import COORDINATE_MAX, Point

CLOSE_TIMEOUT_S = 5.0
ELEMENTS = Path(__file__).with_name("elements.js").read_text(encoding="utf-8")
"""JavaScript that defines `cua`: what is on the screen, and what is focused."""


@dataclass
class WebPage:
    """A page in its own context: Playwright's page, its DevTools session and the context to close. `size` is in CSS
    pixels, `scale` the screenshot's pixels per CSS pixel."""

    context: Any
    page: Any
    devtools: Any
    size: tuple[int, int]
    scale: int

    async def screenshot(self) -> Image.Image:
        """RGB, size times scale. DevTools' own call is about twice as fast as Playwright's."""
        width, height = self.size
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": self.scale}
        reply = await self.devtools.send("Page.captureScreenshot", {"clip": clip, "optimizeForSpeed": True})
        return Image.open(io.BytesIO(base64.b64decode(reply["data"]))).convert("RGB")

    async def locate(self, target: str) -> Point | None:
        """The point of the visible element called `target`: a button's text, a field's label, "2nd checkbox"."""
        pixel: list[int] | None = await self.page.evaluate("target => cua.locate(target)", target)
        return None if pixel is None else point_of(pixel[0], pixel[1], self.size)

    async def close(self) -> None:
        """Close the context; a page that no longer answers is abandoned after `CLOSE_TIMEOUT_S`."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.context.close()


def point_of(column: int, row: int, size: tuple[int, int]) -> Point:
    """The normalised point whose `to_pixels` on a screen of `size` is (column, row)."""
    last = COORDINATE_MAX + 1
    return Point((2 * column + 1) * last // (2 * size[0]), (2 * row + 1) * last // (2 * size[1]))
