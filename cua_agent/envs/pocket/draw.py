"""Draws the phone with Pillow: the same state always gives the same pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from cua_agent.envs.pocket.screens import (
    HEIGHT,
    ROW,
    SLIDER,
    WIDTH,
    Box,
    home_cell_box,
    list_rows,
    row_box,
    screen_elements,
    visible_row_count,
)
from cua_agent.envs.pocket.state import APPS, BATTERY_SAVER, DIALOGS, TIMEOUTS, TOGGLES, PhoneState

Colour = tuple[int, int, int]

INK: Colour = (28, 28, 32)
FAINT: Colour = (120, 120, 128)
PAPER: Colour = (250, 250, 252)
WHITE: Colour = (255, 255, 255)
LINE: Colour = (222, 222, 228)
BLUE: Colour = (30, 110, 235)
GREEN: Colour = (30, 175, 85)
RED: Colour = (225, 45, 45)
GOLD: Colour = (240, 170, 20)
WALLPAPERS: tuple[Colour, ...] = ((222, 232, 246), (246, 232, 222), (222, 242, 228), (236, 226, 244))
APP_COLOURS: dict[str, Colour] = {
    "Settings": (105, 108, 118),
    "Browser": (35, 115, 235),
    "Clock": (35, 35, 60),
    "Contacts": (25, 150, 110),
    "Mail": (215, 65, 50),
    "Camera": (160, 70, 190),
}
ROW_COLOURS: dict[str, Colour] = {
    "Wi-Fi": (30, 120, 240),
    "Bluetooth": (20, 60, 170),
    "Airplane mode": (240, 140, 20),
    "Do not disturb": (120, 60, 170),
    "Display": (60, 160, 90),
    "Battery": (40, 150, 160),
    "About phone": (120, 120, 128),
}


class Canvas:
    """A drawing surface in logical pixels, `scale` real pixels each."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def box(self, box: Box, fill: Colour, radius: int = 0, outline: Colour | None = None) -> None:
        """A filled rectangle; logical pixels."""
        x0, y0, x1, y1 = (v * self.scale for v in box)
        if x1 <= x0:
            return
        self._draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius * self.scale, fill, outline)

    def disc(self, x: int, y: int, radius: int, fill: Colour) -> None:
        """A filled circle."""
        s = self.scale
        self._draw.ellipse(((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill)

    def ring(self, x: int, y: int, radius: int, colour: Colour) -> None:
        """The outline of a circle."""
        s = self.scale
        box = ((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s)
        self._draw.ellipse(box, outline=colour, width=2 * s)

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill)

    def text(self, x: int, y: int, text: str, size: int, fill: Colour = INK, anchor: str = "lm") -> None:
        """A line of text in the phone's font."""
        mask, dx, dy = _text_mask(text, size * self.scale, anchor)
        self.image.paste(fill, (x * self.scale + dx, y * self.scale + dy), mask)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=2048)
def _text_mask(text: str, size: int, anchor: str) -> tuple[Image.Image, int, int]:
    """The text's coverage (an L image) and where it lies relative to its anchor; drawing glyphs is the slow part."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    x0, y0, x1, y1 = (round(v) for v in draw.textbbox((0, 0), text, _font(size), anchor))
    mask = Image.new("L", (max(x1 - x0, 1), max(y1 - y0, 1)))
    ImageDraw.Draw(mask).text((-x0, -y0), text, 255, _font(size), anchor)
    return mask, x0, y0


def draw(state: PhoneState, scale: int = 1) -> Image.Image:
    """The screenshot, RGB, 128 x 224 pixels times `scale`."""
    canvas = Canvas(scale)
    _SCREENS.get(state.screen, _app_page)(canvas, state)
    _status_bar(canvas, state)
    _navigation_bar(canvas)
    if state.dialog:
        _dialog(canvas, state.dialog)
    return canvas.image


def _status_bar(canvas: Canvas, state: PhoneState) -> None:
    canvas.box((0, 0, WIDTH, 12), INK)
    canvas.text(4, 6, "12:00", 9, WHITE)
    canvas.box((108, 3, 122, 10), INK, outline=WHITE)
    canvas.box((108, 3, 108 + 14 * state.battery // 100, 10), GREEN if state.battery >= 50 else RED)


def _navigation_bar(canvas: Canvas) -> None:
    canvas.box((0, 192, WIDTH, HEIGHT), INK)
    canvas.polygon([(22, 208), (34, 200), (34, 216)], WHITE)
    canvas.ring(64, 208, 8, WHITE)
    canvas.box((92, 201, 106, 215), INK, 2, outline=WHITE)


def _title(canvas: Canvas, title: str, colour: Colour = PAPER) -> None:
    canvas.box((0, 12, WIDTH, ROW), colour)
    canvas.text(6, 22, title, 12, INK if colour == PAPER else WHITE)


def _dialog(canvas: Canvas, title: str) -> None:
    canvas.box((8, 70, 120, 156), WHITE, 8, outline=INK)
    canvas.text(64, 94, title, 11, anchor="mm")
    canvas.box((38, 122, 90, 146), BLUE, 8)
    canvas.text(64, 134, DIALOGS[title], 12, WHITE, "mm")


def _home(canvas: Canvas, state: PhoneState) -> None:
    canvas.box((0, 12, WIDTH, 192), WALLPAPERS[state.theme])
    for app, cell in zip(APPS, state.home_cells, strict=True):
        x0, y0, _, _ = home_cell_box(cell)
        canvas.box((x0 + 5, y0 + 4, x0 + 35, y0 + 34), APP_COLOURS[app], 8)
        canvas.text(x0 + 20, y0 + 19, app[:2], 15, WHITE, "mm")
        canvas.text(x0 + 20, y0 + 43, app, 9, anchor="mm")
        if app == state.notification:
            canvas.disc(x0 + 34, y0 + 6, 8, WHITE)
            canvas.disc(x0 + 34, y0 + 6, 7, RED)
            canvas.text(x0 + 34, y0 + 6, "1", 10, WHITE, "mm")


def _row(canvas: Canvas, box: Box, label: str, size: int = 11, indent: int = 6) -> None:
    x0, y0, x1, y1 = box
    canvas.box(box, WHITE)
    canvas.box((x0 + 4, y1 - 1, x1 - 4, y1), LINE)
    canvas.text(x0 + indent, (y0 + y1) // 2, label, size)


def _switch(canvas: Canvas, box: Box, on: bool) -> None:
    """A switch at the right end of a row; its whole plate changes colour, and it says what it is."""
    _, y0, x1, y1 = box
    middle = (y0 + y1) // 2
    canvas.box((x1 - 31, middle - 9, x1 - 1, middle + 9), GREEN if on else (170, 170, 178), 9)
    canvas.disc(x1 - 10 if on else x1 - 22, middle, 7, WHITE)


def _settings(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Settings")
    start = state.first_row.get("Settings", 0)
    shown = list_rows(state)[start : start + visible_row_count(state)]
    for slot, name in enumerate(shown):
        box = row_box(slot)
        _row(canvas, box, name, size=10, indent=18)
        canvas.disc(9, (box[1] + box[3]) // 2, 6, ROW_COLOURS[name])
        if name in TOGGLES:
            _switch(canvas, box, state.toggles[name])
        else:
            canvas.text(118, (box[1] + box[3]) // 2, ">", 14, FAINT, "mm")
    _scroll_mark(canvas, state)


def _scroll_mark(canvas: Canvas, state: PhoneState) -> None:
    """A scroll bar in the title's corner: which part of the list is in view."""
    total, shown = len(list_rows(state)), visible_row_count(state)
    if total <= shown:
        return
    start = state.first_row.get(state.screen, 0)
    canvas.box((116, 14, 122, 30), LINE, 3)
    canvas.box((116, 14 + 16 * start // total, 122, 14 + 16 * (start + shown) // total), FAINT, 3)


def _display(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Display")
    for (x0, x1), sign in (((2, 34), "-"), ((94, 126), "+")):
        canvas.box((x0, 40, x1, 68), BLUE, 8)
        canvas.text((x0 + x1) // 2, 53, sign, 18, WHITE, "mm")
    x0, y0, x1, y1 = SLIDER
    canvas.box(SLIDER, LINE, 3)
    canvas.box((x0, y0, x0 + (x1 - x0) * state.brightness // 100, y1), GOLD, 3)
    canvas.text(64, 72, f"{state.brightness}%", 12, anchor="mm")
    canvas.text(64, 86, "Brightness", 10, FAINT, "mm")
    box = row_box(2)
    _row(canvas, box, "Screen timeout", size=10)
    canvas.text(118, (box[1] + box[3]) // 2, ">", 14, FAINT, "mm")


def _timeouts(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Screen timeout")
    for slot, name in enumerate(TIMEOUTS):
        box = row_box(slot)
        middle = (box[1] + box[3]) // 2
        _row(canvas, box, name, indent=32)
        canvas.ring(17, middle, 9, BLUE if name == state.timeout else FAINT)
        if name == state.timeout:
            canvas.disc(17, middle, 5, BLUE)


def _battery(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Battery")
    canvas.text(64, 54, f"{state.battery}%", 26, GREEN if state.battery >= 50 else RED, "mm")
    canvas.box((14, 76, 114, 100), LINE, 4)
    canvas.box((14, 76, 14 + state.battery, 100), GREEN if state.battery >= 50 else RED, 4)
    box = row_box(3)
    _row(canvas, box, BATTERY_SAVER)
    _switch(canvas, box, state.toggles[BATTERY_SAVER])


def _about(canvas: Canvas, _: PhoneState) -> None:
    _title(canvas, "About phone")
    for slot, (label, value) in enumerate((("Model", "Pocket 1"), ("Android", "15"), ("Serial", "PCKT-0001"))):
        box = row_box(slot)
        _row(canvas, box, label)
        canvas.text(122, (box[1] + box[3]) // 2, value, 10, FAINT, "rm")


def _clock(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Alarms", APP_COLOURS["Clock"])
    for slot, (time, on) in enumerate(state.alarms.items()):
        _row(canvas, row_box(slot), time, size=16)
        _switch(canvas, row_box(slot), on)


def _field(canvas: Canvas, box: Box, hint: str, text: str, focused: bool) -> None:
    x0, y0, x1, y1 = box
    canvas.box(box, PAPER)
    canvas.box((x0 + 4, y0 + 5, x1 - 4, y1 - 5), WHITE, 10, outline=BLUE if focused else FAINT)
    canvas.text(x0 + 12, (y0 + y1) // 2, text or hint, 11, INK if text else FAINT)


def _contacts(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Contacts", APP_COLOURS["Contacts"])
    _field(canvas, row_box(0), "Search", state.draft.get("Search", ""), state.focus == "Search")
    for element in screen_elements(state)[1:]:
        _, y0, _, y1 = element.box
        middle = (y0 + y1) // 2
        _row(canvas, element.box, element.name, size=13, indent=12)
        if element.name == state.starred:
            _star(canvas, 110, middle)
    _scroll_mark(canvas, state)


def _star(canvas: Canvas, x: int, y: int) -> None:
    outer = [(0.0, -10.0), (9.5, -3.1), (5.9, 8.1), (-5.9, 8.1), (-9.5, -3.1)]
    inner = [(2.3, -3.2), (3.8, 1.2), (0.0, 4.0), (-3.8, 1.2), (-2.3, -3.2)]
    points = [(x + dx, y + dy) for pair in zip(outer, inner, strict=True) for dx, dy in pair]
    canvas.polygon(points, GOLD)


def _contact(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Contact", APP_COLOURS["Contacts"])
    canvas.disc(64, 80, 28, APP_COLOURS["Contacts"])
    canvas.text(64, 80, state.contact[:1], 30, WHITE, "mm")
    canvas.text(64, 126, state.contact, 16, anchor="mm")
    canvas.text(64, 148, "+1 555 0100", 11, FAINT, "mm")


def _browser(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, "Browser", APP_COLOURS["Browser"])
    text = state.draft.get("Address bar", "") or state.query
    _field(canvas, row_box(0), "Address bar", text, state.focus == "Address bar")
    if state.query:
        canvas.text(64, 90, "Results for", 11, FAINT, "mm")
        canvas.text(64, 112, state.query[:14], 16, anchor="mm")
    else:
        canvas.text(64, 90, "Word of the day", 11, FAINT, "mm")
        canvas.box((6, 100, 122, 140), (236, 242, 252), 6)
        canvas.text(64, 120, state.page_word, 20, anchor="mm")


def _app_page(canvas: Canvas, state: PhoneState) -> None:
    _title(canvas, state.screen, APP_COLOURS[state.screen])
    canvas.text(64, 100, "Nothing new", 12, FAINT, "mm")


_SCREENS: dict[str, Callable[[Canvas, PhoneState], None]] = {
    "home": _home,
    "Settings": _settings,
    "Display": _display,
    "Screen timeout": _timeouts,
    "Battery": _battery,
    "About phone": _about,
    "Clock": _clock,
    "Contacts": _contacts,
    "Contact": _contact,
    "Browser": _browser,
}
