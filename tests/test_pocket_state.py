"""What a seed makes of the phone: content, arrangement, dialogs; and what no gesture may break."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.screens import elements, list_rows, visible_row_count
from cua_agent.envs.pocket.state import (
    APPS,
    BRIGHTNESS_LEVELS,
    DIALOGS,
    N_HOME_CELLS,
    N_THEMES,
    PARENTS,
    SETTINGS_ROWS,
    START_SCREENS,
    TIMEOUTS,
    Layout,
    make_state,
)

SEEDS = range(400)


def test_a_seed_determines_the_phone() -> None:
    for layout in ("fixed", "themed", "shuffled"):
        assert [make_state(seed, layout) for seed in SEEDS] == [make_state(seed, layout) for seed in SEEDS]
        assert len({repr(make_state(seed, layout)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize(
    ("layout", "fewest", "most"), [("fixed", 1, 1), ("themed", N_THEMES, N_THEMES), ("shuffled", 380, 400)]
)
def test_how_many_arrangements_a_layout_has(layout: Layout, fewest: int, most: int) -> None:
    states = [make_state(seed, layout) for seed in SEEDS]
    for arrangements in ({state.home_cells for state in states}, {state.settings_rows for state in states}):
        assert fewest <= len(arrangements) <= most


def test_themes_can_be_told_apart_by_their_wallpaper() -> None:
    of_theme = {state.theme: state.home_cells for state in (make_state(seed, "themed") for seed in SEEDS)}
    for state in (make_state(seed, "themed") for seed in SEEDS):
        assert of_theme[state.theme] == state.home_cells


def test_every_phone_can_be_used_for_every_task() -> None:
    for state in (make_state(seed, "shuffled") for seed in SEEDS):
        assert len(set(state.home_cells)) == len(APPS) and set(state.home_cells) <= set(range(N_HOME_CELLS))
        assert sorted(state.settings_rows) == sorted(SETTINGS_ROWS)
        assert state.starred in state.contacts and len(set(state.contacts)) == 6
        assert state.timeout in list(TIMEOUTS)[1:-1]  # one step longer or shorter exists
        assert state.notification in APPS[1:]


def test_seeds_cover_every_start() -> None:
    states = [make_state(seed, "shuffled") for seed in SEEDS]
    assert {state.screen for state in states} == set(START_SCREENS)
    assert {state.brightness for state in states} == set(BRIGHTNESS_LEVELS)
    assert {state.notification for state in states} == set(APPS[1:])
    for name in states[0].toggles:
        assert 0.4 < sum(state.toggles[name] for state in states) / len(states) < 0.6
    with_dialog = [state.dialog or state.pending_dialog for state in states]
    assert 0.2 < sum(map(bool, with_dialog)) / len(states) < 0.4
    assert {state.dialog for state in states} == {None, *DIALOGS}


@pytest.mark.parametrize("moment", [1, 2])
def test_a_pending_dialog_pops_up_when_its_moment_has_come(moment: int) -> None:
    seed = next(seed for seed in SEEDS if (make_state(seed, "shuffled").pending_dialog or (0,))[0] == moment)
    state = make_state(seed, "shuffled")
    title = state.pending_dialog[1]
    for _ in range(moment):
        assert state.dialog is None
        apply_action(state, actions.Wait(0))
    assert (state.dialog, state.pending_dialog) == (title, None)
    assert [element.name for element in elements(state)] == [DIALOGS[title]]


POINTS = st.builds(Point, st.integers(0, 1000), st.integers(0, 1000))
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(actions.Tap, POINTS),
    st.builds(actions.DoubleTap, POINTS),
    st.builds(actions.LongPress, POINTS),
    st.builds(actions.TypeText, st.text(max_size=300), st.none() | POINTS, st.booleans()),
    st.builds(actions.Swipe, POINTS, POINTS),
    st.builds(actions.Drag, POINTS, POINTS),
    st.builds(actions.Scroll, st.sampled_from(Direction)),
    st.builds(actions.PressKey, st.sampled_from(["enter", "backspace", "back", "escape", "control+a"])),
    st.builds(actions.PressButton, st.sampled_from(Button)),
    st.builds(actions.Wait, st.floats(0, 30)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9), gestures=st.lists(ACTIONS, max_size=25))
def test_no_sequence_of_gestures_breaks_the_phone(seed: int, gestures: list[Action]) -> None:
    state = make_state(seed, "shuffled")
    for action in gestures:
        error = apply_action(state, action)
        assert error is None or 0 < len(error) < 80
        assert state.screen in PARENTS
        assert state.brightness in BRIGHTNESS_LEVELS
        assert state.timeout in TIMEOUTS
        first = state.first_row.get(state.screen, 0)
        assert 0 <= first <= max(0, len(list_rows(state)) - visible_row_count(state))
        assert all(len(text) <= 200 for text in state.draft.values())
    assert state.actions == len(gestures)
    assert draw(state).size == (128, 224)


def test_states_have_the_same_name_when_nothing_tells_them_apart() -> None:
    state = make_state(next(s for s in SEEDS if not make_state(s, "fixed").pending_dialog), "fixed")
    start = state.identity()
    state.advance()
    state.draft["Search"], state.first_row["Settings"] = "", 0
    assert state.identity() == start
    state.toggles["Wi-Fi"] = not state.toggles["Wi-Fi"]
    assert state.identity() != start
    state.toggles["Wi-Fi"] = not state.toggles["Wi-Fi"]
    assert state.identity() == start
    state.pending_dialog = (state.actions + 2, "New tips")
    waiting = state.identity()
    state.advance()
    assert len({start, waiting, state.identity()}) == 3
    assert len({make_state(seed, "shuffled").identity() for seed in SEEDS}) == len(SEEDS)
