"""The phone's state and how a seed makes one. No pixels here, and no gestures: see `screens` and `draw`."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, field
from typing import Literal

Layout = Literal["fixed", "themed", "shuffled"]

APPS = ("Settings", "Browser", "Clock", "Contacts", "Mail", "Camera")
PACKAGES = {
    "Settings": "com.android.settings",
    "Browser": "com.android.chrome",
    "Clock": "com.android.deskclock",
    "Contacts": "com.android.contacts",
    "Mail": "com.android.email",
    "Camera": "com.android.camera2",
}
TOGGLES = ("Wi-Fi", "Bluetooth", "Airplane mode", "Do not disturb")
BATTERY_SAVER = "Battery saver"
SETTINGS_ROWS = (*TOGGLES, "Display", "Battery", "About phone")
BRIGHTNESS_STEP = 25  # per cent, what one tap on + or - changes
BRIGHTNESS_LEVELS = (0, 25, 50, 75, 100)
TIMEOUTS = {"15 seconds": 15_000, "30 seconds": 30_000, "1 minute": 60_000, "2 minutes": 120_000, "5 minutes": 300_000}
BATTERY_LEVELS = (10, 20, 30, 70, 80, 90)
ALARM_TIMES = ("6:00", "7:00", "8:00", "9:00")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ivy", "Jonas", "Kira", "Leo")
WORDS = ("river", "apple", "stone", "cloud", "tiger", "piano", "lemon", "storm", "bread", "eagle", "snow", "garden")
DIALOGS = {"Update available": "Later", "Battery is low": "OK", "Rate this app": "Skip", "New tips": "Close"}
N_HOME_CELLS = 9
N_THEMES = 4

# Every screen's parent, where "back" leads; a screen's children are opened from it.
PARENTS = {
    "home": "home",
    "Settings": "home",
    "Display": "Settings",
    "Screen timeout": "Display",
    "Battery": "Settings",
    "About phone": "Settings",
    "Browser": "home",
    "Clock": "home",
    "Contacts": "home",
    "Contact": "Contacts",
    "Mail": "home",
    "Camera": "home",
}
START_SCREENS = ("home", "home", "home", "Settings", "Display", "Browser", "Clock", "Contacts", "Mail")


@dataclass
class PhoneState:
    """Everything that the screen shows and the shell reports."""

    theme: int
    home_cells: tuple[int, ...]  # cell of each app of APPS
    settings_rows: tuple[str, ...]  # top to bottom
    toggles: dict[str, bool]
    brightness: int  # per cent
    timeout: str
    battery: int  # per cent
    alarms: dict[str, bool]  # top to bottom
    contacts: tuple[str, ...]  # top to bottom
    starred: str
    page_word: str  # what the browser's page shows
    notification: str  # app with a badge
    screen: str = "home"
    contact: str = ""  # whose page is open
    query: str = ""  # what was searched for in the browser
    draft: dict[str, str] = field(default_factory=dict)  # text in fields, by field name
    focus: str | None = None  # field that typing goes to
    first_row: dict[str, int] = field(default_factory=dict)  # scroll position by screen
    dialog: str | None = None  # title of the dialog that covers the screen
    pending_dialog: tuple[int, str] | None = None  # pops up after that many actions
    actions: int = 0

    def matching_contacts(self) -> tuple[str, ...]:
        """Contacts that match the search field."""
        prefix = self.draft.get("Search", "").lower()
        return tuple(name for name in self.contacts if name.lower().startswith(prefix))

    def identity(self) -> str:
        """The same text for states that nothing tells apart: an empty field is as good as none, a list that was
        scrolled back as one that never was, and how many actions there were counts only while a dialog waits for it."""
        said = asdict(self)
        said["draft"], said["first_row"] = ({k: v for k, v in said[n].items() if v} for n in ("draft", "first_row"))
        said["actions"] = self.actions if self.pending_dialog else 0
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

    def advance(self) -> None:
        """Count an action; a pending dialog pops up when its moment has come."""
        self.actions += 1
        self.show_due_dialog()

    def show_due_dialog(self) -> None:
        """Open the dialog whose time has come."""
        if self.pending_dialog and self.actions >= self.pending_dialog[0]:
            self.dialog, self.pending_dialog = self.pending_dialog[1], None


def make_state(seed: int, layout: Layout) -> PhoneState:
    """The phone's state for a seed: settings, content, start screen and dialogs, all drawn from it.

    `fixed` always places icons and rows alike, `themed` in one of `N_THEMES` ways, `shuffled` in any way.
    """
    rng = random.Random(seed)
    theme = rng.randrange(N_THEMES)
    arrangement = {"fixed": random.Random(0), "themed": random.Random(theme), "shuffled": rng}[layout]
    home_cells = tuple(arrangement.sample(range(N_HOME_CELLS), len(APPS)))
    settings_rows = tuple(arrangement.sample(SETTINGS_ROWS, len(SETTINGS_ROWS)))
    toggles = {name: rng.random() < 0.5 for name in (*TOGGLES, BATTERY_SAVER)}
    alarm_times = rng.sample(ALARM_TIMES, len(ALARM_TIMES))
    contacts = tuple(rng.sample(NAMES, 6))
    state = PhoneState(
        theme=theme,
        home_cells=home_cells,
        settings_rows=settings_rows,
        toggles=toggles,
        brightness=rng.choice(BRIGHTNESS_LEVELS),
        timeout=rng.choice(list(TIMEOUTS)[1:-1]),
        battery=rng.choice(BATTERY_LEVELS),
        alarms={time: rng.random() < 0.5 for time in alarm_times},
        contacts=contacts,
        starred=rng.choice(contacts),
        page_word=rng.choice(WORDS),
        notification=rng.choice(APPS[1:]),
        screen=rng.choice(START_SCREENS),
    )
    if rng.random() < 0.3:
        state.pending_dialog = (rng.choice((0, 0, 1, 2)), rng.choice(list(DIALOGS)))
        state.show_due_dialog()
    return state
