"""Screenshots on their way out: storage behind links, traces, scrolled captures, and what is on them."""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageDraw, UnidentifiedImageError

from cua_agent.actions import Point
from cua_agent.envs.local_gbox.phone import Phone
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.screens import HEIGHT, ROW, VISIBLE_ROWS, WIDTH, list_rows, visible_row_count
from cua_agent.image_bytes import PNG_URI, image_uri

_MAX_STORED = 512
_MAX_KNOWN = 8192
_MARK = (255, 0, 80)

Targets = Mapping[str, tuple[int, int]]
"""Pixels of the named elements on a screenshot, by case-folded name."""

_Value = TypeVar("_Value")


def cut_short(uri: str) -> str:
    """The data URI of the first half of a picture's bytes."""
    png = base64.b64decode(uri.removeprefix(PNG_URI))
    return image_uri(png[: len(png) // 2])


def with_trace(image: Image.Image, places: Sequence[Point]) -> Image.Image:
    """The picture with a ring at every place that was touched and a line along the way."""
    traced = image.copy()
    pen = ImageDraw.Draw(traced)
    pixels = [place.to_pixels(*image.size) for place in places]
    radius = max(3, image.width // 24)
    for x, y in pixels:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARK, width=2)
    if len(pixels) > 1:
        pen.line(pixels, fill=_MARK, width=2)
    return traced


def scrolled_capture(phone: Phone, max_height: float, scroll_back: bool) -> Image.Image:
    """The whole list of the screen in one picture of at most `max_height` pixels; other screens as they are.

    Without `scroll_back` the list is left at its end, where the capture ended.
    """
    state = copy.deepcopy(phone.state)
    rows, shown = list_rows(state), visible_row_count(state)
    if state.dialog or len(rows) <= shown:
        return phone.screenshot()
    scale, last = phone.pixel_scale, len(rows) - shown
    header = ROW * (1 + VISIBLE_ROWS - shown)
    whole = Image.new("RGB", (WIDTH * scale, (HEIGHT + last * ROW) * scale))
    for first in range(last + 1):
        # Each frame adds the rows below what is there; the last one also brings the navigation bar.
        state.first_row[state.screen] = first
        frame = draw(state, scale)
        if first == 0:
            whole.paste(frame)
        else:
            below = frame.crop((0, header * scale, WIDTH * scale, HEIGHT * scale))
            whole.paste(below, (0, (header + first * ROW) * scale))
    if not scroll_back:
        phone.state.first_row[phone.state.screen] = last
    width = phone.view_size[0]
    view = whole.resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS)
    return view.crop((0, 0, width, min(view.height, int(max_height))))


@dataclass(frozen=True)
class Stored:
    """A picture behind a storage key, until it expires (seconds since the epoch)."""

    png: bytes
    expires_at: float


class Gallery:
    """Pictures behind storage keys, and the named elements of every screenshot that was served; the oldest go first."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._known: OrderedDict[str, Targets] = OrderedDict()

    def store(self, png: bytes, expires_at: float) -> str:
        """Keep a picture; returns its key."""
        key = f"screenshots/{hashlib.sha256(png).hexdigest()[:32]}.png"
        _put(self._stored, key, Stored(png, expires_at), _MAX_STORED)
        return key

    def stored(self, key: str, now: float) -> bytes | None:
        """A picture that was stored and has not expired."""
        entry = self._stored.get(key)
        return entry.png if entry and now < entry.expires_at else None

    def remember(self, screenshot: Image.Image, targets: Targets) -> None:
        """Keep the named elements of a screenshot for the grounding service."""
        _put(self._known, _pixels_digest(screenshot), targets, _MAX_KNOWN)

    def targets_on(self, screenshot: Image.Image) -> Targets | None:
        """What a screenshot shows, found by its pixels; None when it did not come from here."""
        return self._known.get(_pixels_digest(screenshot))

    def decode(self, source: str, now: float) -> Image.Image | None:
        """The picture of a data URI, bare base64, a storage key or a link to one; None when it cannot be read."""
        key = source[source.find("screenshots/") :] if "screenshots/" in source else ""
        try:
            png = self.stored(key, now) if key else base64.b64decode(source.partition(",")[2] or source, validate=True)
            return Image.open(io.BytesIO(png)).convert("RGB") if png else None
        except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError):  # SyntaxError: PIL's for a broken PNG
            return None


def _put(store: OrderedDict[str, _Value], key: str, value: _Value, limit: int) -> None:
    store[key] = value
    store.move_to_end(key)
    while len(store) > limit:
        store.popitem(last=False)


def _pixels_digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
