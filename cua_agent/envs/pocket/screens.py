"""What is on each screen: named elements with their boxes, and what touching them does.

Logical pixels, 128 x 224: a status bar and a title in the top 32 rows, five list rows of 32, a navigation bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cua_agent.envs.pocket.state import (
    APPS,
    BATTERY_SAVER,
    BRIGHTNESS_STEP,
    DIALOGS,
    PARENTS,
    TIMEOUTS,
    TOGGLES,
    PhoneState,
)

WIDTH, HEIGHT = 128, 224
ROW = 32
VISIBLE_ROWS = 5
SCROLL_ROWS = 2  # rows that one scroll moves

Box = tuple[int, int, int, int]
Effect = Callable[[PhoneState], None]

SLIDER: Box = (40, 48, 88, 60)


@dataclass(frozen=True)
class Element:
    """A thing on the screen that a person could name and touch. `box` is x0, y0, x1, y1, the end excluded."""

    name: str
    box: Box
    effect: Effect

    @property
    def centre(self) -> tuple[int, int]:
        """The pixel in the middle."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) // 2, (y0 + y1) // 2

    def contains(self, x: int, y: int) -> bool:
        """Whether a pixel is on the element."""
        x0, y0, x1, y1 = self.box
        return x0 <= x < x1 and y0 <= y < y1


def row_box(index: int) -> Box:
    """Box of the index-th list row below the title."""
    return (0, ROW * (index + 1), WIDTH, ROW * (index + 2))


def home_cell_box(cell: int) -> Box:
    """Box of a cell of the home screen's 3 x 3 grid."""
    column, row = cell % 3, cell // 3
    return (2 + 42 * column, 22 + 56 * row, 42 + 42 * column, 76 + 56 * row)


def open_screen(screen: str, state: PhoneState) -> None:
    """Show a screen, unfocused and scrolled to its top."""
    state.screen, state.focus = screen, None
    state.first_row[screen] = 0
    if screen == state.notification:
        state.notification = ""


def go_home(state: PhoneState) -> None:
    """Show the home screen."""
    open_screen("home", state)


def go_back(state: PhoneState) -> None:
    """Close what is on top: a dialog, the keyboard, a page, the screen."""
    if state.dialog:
        state.dialog = None
    elif state.focus:
        state.focus = None
    elif state.screen == "Browser" and state.query:
        state.query = ""
    else:
        open_screen(PARENTS[state.screen], state)


def list_rows(state: PhoneState) -> Sequence[str]:
    """Names of the rows of a scrolling list (all, also those out of view); empty on other screens."""
    if state.screen == "Settings":
        return state.settings_rows
    if state.screen == "Contacts":
        return state.matching_contacts()
    return ()


def visible_row_count(state: PhoneState) -> int:
    """Rows of the list that fit: Contacts' search field takes one."""
    return VISIBLE_ROWS - (state.screen == "Contacts")


def scroll(state: PhoneState, rows: int) -> None:
    """Move a list by `rows` (positive: towards its end); stops at both ends."""
    last = max(0, len(list_rows(state)) - visible_row_count(state))
    position = state.first_row.get(state.screen, 0) + rows
    state.first_row[state.screen] = min(max(position, 0), last)


def elements(state: PhoneState) -> list[Element]:
    """The elements that can be touched now. A dialog hides everything else."""
    if state.dialog:
        return [Element(DIALOGS[state.dialog], (38, 122, 90, 146), _dismiss)]
    bar = [
        Element("Back", (8, 192, 48, 224), go_back),
        Element("Home", (48, 192, 80, 224), go_home),
    ]
    return bar + screen_elements(state)


def screen_elements(state: PhoneState) -> list[Element]:
    """The elements of the screen itself, without navigation bar, whether or not a dialog covers them."""
    return _SCREENS.get(state.screen, _no_elements)(state)


def element_at(state: PhoneState, x: int, y: int) -> Element | None:
    """The element at a logical pixel."""
    return next((element for element in elements(state) if element.contains(x, y)), None)


def find_element(state: PhoneState, name: str) -> Element | None:
    """The element that a person would call `name` (case does not matter).

    The slider is not found: it has no one place to touch. Coordinates drag it.
    """
    wanted = name.strip().casefold()
    found = (element for element in elements(state) if element.name.casefold() == wanted and element.box != SLIDER)
    return next(found, None)


def set_brightness_at(state: PhoneState, x: int) -> None:
    """Put the slider where the finger is, to the nearest step."""
    x0, _, x1, _ = SLIDER
    fraction = min(max((x - x0) / (x1 - x0), 0.0), 1.0)
    state.brightness = round(fraction * 100 / BRIGHTNESS_STEP) * BRIGHTNESS_STEP


def _dismiss(state: PhoneState) -> None:
    state.dialog = None


def _no_elements(_: PhoneState) -> list[Element]:
    return []


def _home(state: PhoneState) -> list[Element]:
    return [
        Element(app, home_cell_box(cell), partial(open_screen, app))
        for app, cell in zip(APPS, state.home_cells, strict=True)
    ]


def _list_elements(state: PhoneState, effect_of: Callable[[str], Effect], first_slot: int = 0) -> list[Element]:
    start = state.first_row.get(state.screen, 0)
    shown = list_rows(state)[start : start + visible_row_count(state)]
    return [Element(name, row_box(first_slot + i), effect_of(name)) for i, name in enumerate(shown)]


def _settings(state: PhoneState) -> list[Element]:
    def effect_of(name: str) -> Effect:
        return partial(_flip, name) if name in TOGGLES else partial(open_screen, name)

    return _list_elements(state, effect_of)


def _display(_: PhoneState) -> list[Element]:
    return [
        Element("-", (2, 40, 34, 68), partial(_change_brightness, -BRIGHTNESS_STEP)),
        Element("+", (94, 40, 126, 68), partial(_change_brightness, BRIGHTNESS_STEP)),
        Element("Brightness", SLIDER, lambda state: set_brightness_at(state, (SLIDER[0] + SLIDER[2]) // 2)),
        Element("Screen timeout", row_box(2), partial(open_screen, "Screen timeout")),
    ]


def _timeouts(_: PhoneState) -> list[Element]:
    return [Element(name, row_box(i), partial(_set_timeout, name)) for i, name in enumerate(TIMEOUTS)]


def _battery(_: PhoneState) -> list[Element]:
    return [Element(BATTERY_SAVER, row_box(3), partial(_flip, BATTERY_SAVER))]


def _clock(state: PhoneState) -> list[Element]:
    return [Element(time, row_box(i), partial(_flip_alarm, time)) for i, time in enumerate(state.alarms)]


def _contacts(state: PhoneState) -> list[Element]:
    search = Element("Search", row_box(0), partial(_focus, "Search"))
    return [search, *_list_elements(state, lambda name: partial(_open_contact, name), first_slot=1)]


def _browser(_: PhoneState) -> list[Element]:
    return [Element("Address bar", row_box(0), partial(_focus, "Address bar"))]


def _flip(name: str, state: PhoneState) -> None:
    state.toggles[name] = not state.toggles[name]


def _flip_alarm(time: str, state: PhoneState) -> None:
    state.alarms[time] = not state.alarms[time]


def _set_timeout(name: str, state: PhoneState) -> None:
    state.timeout = name


def _change_brightness(by: int, state: PhoneState) -> None:
    state.brightness = min(max(state.brightness + by, 0), 100)


def _focus(field: str, state: PhoneState) -> None:
    state.focus = field


def _open_contact(name: str, state: PhoneState) -> None:
    state.contact = name
    open_screen("Contact", state)


_SCREENS: dict[str, Callable[[PhoneState], list[Element]]] = {
    "home": _home,
    "Settings": _settings,
    "Display": _display,
    "Screen timeout": _timeouts,
    "Battery": _battery,
    "Clock": _clock,
    "Contacts": _contacts,
    "Browser": _browser,
}
