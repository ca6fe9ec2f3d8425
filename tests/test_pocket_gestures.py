"""What every typed action does to the phone."""

import asyncio

import pytest
from pocket_rig import environment_in, perform, phone

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point, Target
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.pocket.screens import HEIGHT, SLIDER, WIDTH
from cua_agent.envs.pocket.state import DIALOGS, TOGGLES, PhoneState

ROWS = (*TOGGLES, "Display", "Battery", "About phone")


def after(state: PhoneState, *gestures: Action) -> PhoneState:
    """The state after actions that all have an effect."""
    environment = environment_in(state)
    for action in gestures:
        result = asyncio.run(perform(environment, action))
        assert result is not None and result.error is None, (action, result)
    return environment.state


def refused(state: PhoneState, action: Action) -> str:
    """Why the action had no effect, as the agent reads it; nothing but the count of actions has changed."""
    environment = environment_in(state)
    before = repr(state).replace(f"actions={state.actions}", "")
    result = asyncio.run(perform(environment, action))
    assert result is not None and result.error
    assert result.observation.text == result.error
    assert repr(state).replace(f"actions={state.actions}", "") == before
    return result.error


def at(x: int, y: int) -> Point:
    """The point of a logical pixel."""
    return Point((2 * x + 1) * 1001 // (2 * WIDTH), (2 * y + 1) * 1001 // (2 * HEIGHT))


def tap(name: str) -> actions.Tap:
    return actions.Tap(Target(name))


def test_taps_open_every_screen_and_back_leads_to_its_parent() -> None:
    state = phone("home", settings_rows=("Display", "Battery", "About phone", *TOGGLES), notification="Mail")
    for path in (
        ["Settings", "Display", "Screen timeout"],
        ["Settings", "Battery"],
        ["Settings", "About phone"],
        ["Browser"],
        ["Clock"],
        ["Contacts"],
        ["Mail"],
        ["Camera"],
    ):
        for screen in path:
            assert after(state, tap(screen)).screen == screen
        for parent in [*path[-2::-1], "home"]:
            assert after(state, tap("Back")).screen == parent
    assert after(state, tap("Back")).screen == "home"


def test_opening_an_app_clears_its_badge_only() -> None:
    assert after(phone("home", notification="Mail"), tap("Clock")).notification == "Mail"
    assert after(phone("home", notification="Mail"), tap("Mail")).notification == ""


def test_a_contact_opens_and_back_leads_to_the_list() -> None:
    state = phone("Contacts")
    name = state.contacts[2]
    assert (after(state, tap(name)).screen, state.contact) == ("Contact", name)
    assert after(state, tap("Back")).screen == "Contacts"


def test_home_from_anywhere() -> None:
    assert after(phone("Screen timeout"), tap("Home")).screen == "home"
    assert after(phone("Screen timeout"), actions.PressButton(Button.HOME)).screen == "home"


@pytest.mark.parametrize("way", [actions.PressButton(Button.BACK), actions.PressKey("Back"), actions.PressKey("Esc")])
def test_ways_back(way: Action) -> None:
    assert after(phone("Display"), way).screen == "Settings"
    state = phone("Browser", focus="Address bar", query="river")
    assert (after(state, way).focus, state.query) == (None, "river")
    assert (after(state, way).query, state.screen) == ("", "Browser")
    assert after(state, way).screen == "home"


@pytest.mark.parametrize("name", TOGGLES)
def test_a_switch_flips_alone_and_flips_back(name: str) -> None:
    state = phone("Settings", settings_rows=(*TOGGLES, "Display", "Battery", "About phone"))
    before = dict(state.toggles)
    assert after(state, tap(name)).toggles == before | {name: not before[name]}
    assert after(state, actions.DoubleTap(Target(name))).toggles == before | {name: not before[name]}  # two taps
    assert after(state, tap(name)).toggles == before


def test_the_other_settings() -> None:
    state = phone("Battery")
    assert after(state, tap("Battery saver")).toggles["Battery saver"] is not phone().toggles["Battery saver"]
    state = phone("Clock")
    before = dict(state.alarms)
    assert after(state, tap("7:00")).alarms == before | {"7:00": not before["7:00"]}
    assert after(phone("Screen timeout"), tap("5 minutes")).timeout == "5 minutes"


def test_brightness_moves_in_steps_and_stops_at_both_ends() -> None:
    state = phone("Display", brightness=50)
    assert [after(state, tap("+")).brightness for _ in range(3)] == [75, 100, 100]
    assert [after(state, tap("-")).brightness for _ in range(5)] == [75, 50, 25, 0, 0]


@pytest.mark.parametrize("gesture", [actions.Drag, actions.Swipe])
@pytest.mark.parametrize(
    ("x", "brightness"), [(0, 0), (40, 0), (45, 0), (47, 25), (64, 50), (75, 75), (88, 100), (127, 100)]
)
def test_the_slider_goes_where_the_finger_goes(
    gesture: type[actions.Drag | actions.Swipe], x: int, brightness: int
) -> None:
    assert after(phone("Display"), gesture(at(50, 54), at(x, 54))).brightness == brightness
    assert after(phone("Display"), gesture(at(87, 50), at(x, 100))).brightness == brightness


@pytest.mark.parametrize(("x", "brightness"), [(41, 0), (52, 25), (64, 50), (86, 100)])
def test_a_tap_on_the_slider_sets_it(x: int, brightness: int) -> None:
    assert SLIDER[0] <= x < SLIDER[2]
    assert after(phone("Display"), actions.Tap(at(x, 54))).brightness == brightness


def test_lists_scroll_by_two_rows_and_stop_at_both_ends() -> None:
    state = phone("Settings", settings_rows=ROWS)
    position = [after(state, actions.Scroll(way)).first_row["Settings"] for way in (Direction.DOWN, Direction.DOWN)]
    assert position == [2, 2]
    assert after(state, tap("About phone"), tap("Back")).first_row["Settings"] == 0  # opened anew at its top
    position = [
        after(state, actions.Scroll(way)).first_row["Settings"] for way in (Direction.DOWN, Direction.UP, Direction.UP)
    ]
    assert position == [2, 0, 0]


@pytest.mark.parametrize("gesture", [actions.Drag, actions.Swipe])
def test_a_finger_drags_the_list_along(gesture: type[actions.Drag | actions.Swipe]) -> None:
    state = phone("Contacts")
    assert after(state, gesture(at(64, 170), at(64, 60))).first_row["Contacts"] == 2
    assert after(state, gesture(at(64, 60), at(64, 170))).first_row["Contacts"] == 0


def test_typing_replaces_a_fields_text_and_enter_submits_it() -> None:
    state = phone("Browser")
    assert after(state, actions.TypeText("rive", Target("Address bar"))).draft == {"Address bar": "rive"}
    assert after(state, actions.TypeText("river")).draft == {"Address bar": "river"}
    assert after(state, actions.PressKey("backspace")).draft == {"Address bar": "rive"}
    assert (after(state, actions.PressKey("enter")).query, state.focus, state.draft) == ("rive", None, {})
    assert after(state, actions.TypeText(" snow ", Target("Address bar"), press_enter=True)).query == "snow"


def test_the_search_field_filters_contacts_also_after_scrolling() -> None:
    state = phone("Contacts", contacts=("Anna", "Ben", "Clara", "David", "Emma", "Felix"))
    after(state, actions.Scroll(Direction.DOWN), actions.TypeText("a", Target("Search")))
    assert state.matching_contacts() == ("Anna",)
    assert after(state, tap("Anna")).contact == "Anna"


def test_long_texts_are_typed_whole_or_not_at_all() -> None:
    state = after(phone("Browser"), actions.TypeText("x" * 2000, Target("Address bar")))
    assert state.draft == {"Address bar": "x" * 2000}
    assert refused(state, actions.TypeText("y" * 2001)) is not None
    assert state.draft == {"Address bar": "x" * 2000}
    assert draw(state, 1).size == (128, 224)


@pytest.mark.parametrize("title", DIALOGS)
def test_a_dialog_blocks_everything_but_its_button_and_back(title: str) -> None:
    for action in (
        actions.Tap(at(64, 208)),
        actions.Tap(at(10, 40)),
        actions.TypeText("x"),
        actions.Scroll(Direction.DOWN),
        actions.Swipe(at(64, 170), at(64, 60)),
        actions.PressButton(Button.HOME),
    ):
        assert refused(phone("Settings", dialog=title, settings_rows=ROWS), action)
    for action in (tap(DIALOGS[title]), actions.PressButton(Button.BACK), actions.PressKey("escape")):
        state = after(phone("Settings", dialog=title), action)
        assert (state.dialog, state.screen) == (None, "Settings")


UNKNOWN_KEY = f"unknown key '{'x' * 20}'; allowed: enter, backspace, back, escape"


@pytest.mark.parametrize(
    ("state", "action", "reason"),
    [
        (phone("home"), actions.Tap(at(64, 5)), "nothing there"),
        (phone("home"), actions.DoubleTap(at(64, 5)), "nothing there"),
        (phone("home"), actions.TypeText("x"), "no text field has the focus"),
        (phone("home"), actions.TypeText("x", at(64, 5)), "nothing there"),
        (phone("home"), actions.Scroll(Direction.DOWN), "nothing to scroll"),
        (phone("Settings"), actions.Scroll(Direction.LEFT), "nothing to scroll"),
        (phone("Settings"), actions.Swipe(at(64, 60), at(64, 65)), "nothing moved"),
        (phone("home"), actions.Swipe(at(64, 170), at(64, 60)), "nothing moved"),
        (phone("home"), actions.PressKey("enter"), "key 'enter' does nothing here"),
        (phone("home"), actions.PressKey("backspace"), "key 'backspace' does nothing here"),
        (
            phone("home"),
            actions.PressKey("x" * 200),
            f"unknown key '{'x' * 20}'; allowed: enter, backspace, back, escape",
        ),
        (phone("home"), actions.PressButton(Button.POWER), "button power does nothing here"),
    ],
)
def test_an_action_without_effect_says_why(state: PhoneState, action: Action, reason: str) -> None:
    assert refused(state, action) == reason


@pytest.mark.parametrize("action", [actions.LongPress(at(64, 60)), actions.Wait(1), actions.ReportTaskComplete()])
def test_actions_that_change_nothing(action: Action) -> None:
    state, untouched = phone("Settings"), phone("Settings")
    assert apply_action(state, action) is None
    untouched.actions = 1
    assert state == untouched


def test_targets_must_have_been_located() -> None:
    with pytest.raises(TypeError, match="targets are located before"):
        asyncio.run(environment_in(phone()).step(tap("Mail")))


def test_elements_that_are_not_there_cannot_be_touched() -> None:
    environment: PocketEnvironment = environment_in(phone("home"))
    assert asyncio.run(perform(environment, tap("Wi-Fi"))) is None
