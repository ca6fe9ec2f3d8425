"""What is on the screen: pixels, elements, and that everything that matters can be seen."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocket_rig import environment_in, phone

from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.screens import HEIGHT, SLIDER, WIDTH, element_at, elements, find_element
from cua_agent.envs.pocket.state import ALARM_TIMES, BATTERY_SAVER, DIALOGS, PARENTS, TOGGLES, PhoneState

SCREENS = tuple(PARENTS)
ROWS_BELOW = ("Do not disturb", "About phone")  # out of view at first


def pixels(state: PhoneState, scale: int = 1) -> np.ndarray:
    return np.asarray(draw(state, scale))


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_screen_draws_and_equal_states_look_equal(screen: str, scale: int) -> None:
    first = pixels(phone(screen, contact="Anna"), scale)
    assert first.shape == (HEIGHT * scale, WIDTH * scale, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, pixels(phone(screen, contact="Anna"), scale))


def test_every_screen_looks_different() -> None:
    assert len({pixels(phone(screen, contact="Anna")).tobytes() for screen in SCREENS}) == len(SCREENS)


def test_seeds_look_different() -> None:
    assert len({pixels(phone("home", seed)).tobytes() for seed in range(100)}) == 100


def test_a_larger_screenshot_shows_the_same() -> None:
    for screen in SCREENS:
        state = phone(screen, contact="Anna")
        small = np.asarray(draw(state), dtype=float)
        large = np.asarray(draw(state, 3).resize((WIDTH, HEIGHT)), dtype=float)
        assert np.abs(small - large).mean() < 12  # letters are hinted differently; the rest is the same


def changed(state: PhoneState, change: Callable[[PhoneState], object]) -> tuple[int, int, int, int] | None:
    """Bounding box of the pixels that a change of the state alters (x0, y0, x1, y1)."""
    before = pixels(state)
    change(state)
    rows, columns = np.nonzero((pixels(state) != before).any(axis=2))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@pytest.mark.parametrize(
    ("screen", "element", "change"),
    [
        *[("Settings", name, lambda s, n=name: s.toggles.update({n: not s.toggles[n]})) for name in TOGGLES],
        ("Battery", BATTERY_SAVER, lambda s: s.toggles.update({BATTERY_SAVER: not s.toggles[BATTERY_SAVER]})),
        *[("Clock", time, lambda s, t=time: s.alarms.update({t: not s.alarms[t]})) for time in ALARM_TIMES],
    ],
)
def test_a_switch_shows_its_state_in_its_own_row_and_plainly(screen: str, element: str, change: Any) -> None:
    state = phone(screen, settings_rows=(*TOGGLES, "Display", "Battery", "About phone"))
    box = find_element(state, element).box
    x0, y0, x1, y1 = changed(state, change)
    assert box[0] <= x0 and box[1] <= y0 and x1 <= box[2] and y1 <= box[3]
    assert (x1 - x0) * (y1 - y0) > 400


@pytest.mark.parametrize(
    ("screen", "change"),
    [
        ("Display", lambda s: setattr(s, "brightness", 25 if s.brightness != 25 else 75)),
        ("Screen timeout", lambda s: setattr(s, "timeout", "5 minutes")),
        ("Contacts", lambda s: setattr(s, "starred", s.contacts[s.contacts[0] == s.starred])),
        ("home", lambda s: setattr(s, "notification", "")),
        ("home", lambda s: setattr(s, "home_cells", s.home_cells[1:] + s.home_cells[:1])),
        ("Browser", lambda s: setattr(s, "page_word", "other")),
        ("Browser", lambda s: setattr(s, "query", "river")),
        ("Browser", lambda s: setattr(s, "focus", "Address bar")),
        ("Contact", lambda s: setattr(s, "contact", "Ben")),
        ("Settings", lambda s: s.first_row.update(Settings=2)),
        *[(screen, lambda s: setattr(s, "dialog", "New tips")) for screen in SCREENS],
        *[(screen, lambda s: setattr(s, "battery", 10 if s.battery > 50 else 90)) for screen in SCREENS],
    ],
)
def test_what_matters_can_be_seen(screen: str, change: Any) -> None:
    assert changed(phone(screen, contact="Anna"), change) is not None


def test_only_the_goal_relevant_part_of_home_shows_the_badge() -> None:
    state = phone("home", notification="Mail")
    x0, y0, x1, y1 = changed(state, lambda s: setattr(s, "notification", ""))
    box = find_element(state, "Mail").box
    assert box[0] <= x0 and x1 <= box[2] + 4 and box[1] - 4 <= y0 and y1 <= box[3]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9), screen=st.sampled_from(SCREENS), scroll=st.sampled_from([0, 2]), data=st.data())
def test_a_located_element_is_the_one_that_is_hit(seed: int, screen: str, scroll: int, data: st.DataObject) -> None:
    dialog = data.draw(st.none() | st.sampled_from(list(DIALOGS)))
    state = phone(screen, seed, contact="Anna", dialog=dialog, first_row={screen: scroll})
    environment = environment_in(state)
    for element in elements(state):
        x0, y0, x1, y1 = element.box
        assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
        name = data.draw(st.sampled_from([element.name, f" {element.name.upper()} "]))
        point = asyncio.run(environment.locate(name))
        if element.box == SLIDER:
            assert point is None  # it has no one place to touch
            continue
        assert element_at(state, *point.to_pixels(WIDTH, HEIGHT)).name == element.name
        # Every corner belongs to it as well: no element hides another.
        for x, y in ((x0, y0), (x1 - 1, y0), (x0, y1 - 1), (x1 - 1, y1 - 1)):
            assert element_at(state, x, y).name == element.name


def test_what_is_not_on_the_screen_is_not_located() -> None:
    settings_screen = phone("Settings", settings_rows=(*TOGGLES, "Display", "Battery", "About phone"))
    for name in (
        "Camera",
        "About phone",
        "",
        "Later",
        "Settings",
    ):  # elsewhere, scrolled away, nothing, no dialog, title
        assert asyncio.run(environment_in(settings_screen).locate(name)) is None
    covered = environment_in(phone("home", dialog="New tips"))
    assert asyncio.run(covered.locate("Home")) is None
    assert asyncio.run(covered.locate("Close")) is not None


OFF = dict.fromkeys((*TOGGLES, BATTERY_SAVER), False)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            phone(
                "Settings",
                settings_rows=("Wi-Fi", "Display", "Bluetooth", "Battery", "Airplane mode", *ROWS_BELOW),
                toggles=OFF | {"Wi-Fi": True},
                battery=20,
            ),
            "Settings: Wi-Fi on, Display, Bluetooth off, Battery, Airplane mode off. low",
        ),
        (
            phone("Clock", alarms={"8:00": True, "6:00": False}, battery=50),
            "Clock: 8:00 on, 6:00 off. high",
        ),
        (
            phone("Contacts", contacts=("Ben", "Anna"), starred="Anna", battery=10),
            "Contacts: Search, Ben, Anna star. low",
        ),
        (
            phone("Display", brightness=75, battery=90),
            "Display: -, +, Brightness 75%, Screen timeout. high",
        ),
        (
            phone("Screen timeout", timeout="1 minute", battery=90),
            "Screen timeout: 15 seconds, 30 seconds, 1 minute selected, 2 minutes, 5 minutes. high",
        ),
        (phone("Battery", toggles=OFF, battery=30), "Battery: Battery saver off, 30%. low"),
        (phone("Browser", page_word="river", battery=90), "Browser: Address bar, river. high"),
        (phone("Contact", contact="Leo", battery=90), "Contact: Leo. high"),
        (
            phone("home", notification="Mail", battery=90),
            "home: Settings, Browser, Clock, Contacts, Mail notification, Camera. high",
        ),
        (phone("home", dialog="Battery is low"), "Battery is low: OK"),
    ],
    ids=lambda value: value.screen if isinstance(value, PhoneState) else "",
)
def test_a_screen_in_words(state: PhoneState, words: str) -> None:
    assert describe_screen(state) == words
