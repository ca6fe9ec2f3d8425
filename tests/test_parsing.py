"""The parser: exact on canonical calls, calm about everything else."""

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point, Target
from cua_agent.parsing import Malformed, describe, parse_tool_call, render_tool_call

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
_name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
_coordinate = st.integers(0, 1000)
_location = st.one_of(st.builds(Point, _coordinate, _coordinate), st.builds(Target, _name))
_seconds = st.floats(0, 30)
any_action = st.one_of(
    st.builds(actions.Tap, _location),
    st.builds(actions.DoubleTap, _location),
    st.builds(actions.LongPress, _location, _seconds),
    st.builds(actions.TypeText, _text, st.none() | _location, st.booleans()),
    st.builds(actions.Swipe, _location, _location),
    st.builds(actions.Scroll, st.sampled_from(Direction), st.none() | _location),
    st.builds(actions.Drag, _location, _location),
    st.builds(actions.PressKey, _name),
    st.builds(actions.PressButton, st.sampled_from(Button)),
    st.builds(actions.Wait, _seconds),
    st.builds(actions.ReportTaskComplete, _text),
)


def call(body: object) -> str:
    return f"<tool_call>\n{body if isinstance(body, str) else json.dumps(body)}\n</tool_call>"


def perform(**arguments: object) -> str:
    return call({"name": "perform_action", "arguments": arguments})


def error(text: str) -> str:
    parsed = parse_tool_call(text)
    assert isinstance(parsed, Malformed)
    assert len(parsed.error) < 120
    return parsed.error


@given(any_action)
def test_rendered_actions_parse_to_themselves(action: Action) -> None:
    assert parse_tool_call(render_tool_call(action)) == action


@given(any_action)
def test_rendered_actions_hold_one_call_and_no_special_token(action: Action) -> None:
    text = render_tool_call(action)
    assert text.startswith("<tool_call>\n") and text.endswith("\n</tool_call>")
    assert text.count("<") == 2


def test_the_canonical_text() -> None:
    assert render_tool_call(actions.Tap(Target("Wi-Fi"))) == (
        '<tool_call>\n{"name": "perform_action", "arguments": {"action": "tap", "target": "Wi-Fi"}}\n</tool_call>'
    )
    assert render_tool_call(actions.Tap(Point(500, 20))) == perform(action="tap", coordinate=[500, 20])
    assert render_tool_call(actions.Wait(1.0)) == call('{"name": "sleep", "arguments": {"seconds": 1}}')
    assert render_tool_call(actions.ReportTaskComplete()) == call('{"name": "report_task_complete", "arguments": {}}')
    assert describe(actions.Scroll(Direction.DOWN, Target("list"))) == "scroll direction=down target=list"
    assert describe(actions.Wait(2.5)) == "sleep seconds=2.5"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("I see the switch.\n" + perform(action="tap", target="Wi-Fi"), actions.Tap(Target("Wi-Fi"))),
        (perform(action="tap", target="OK") + "<|im_end|>", actions.Tap(Target("OK"))),
        (perform(action="tap", coordinate=[10.6, 0.0]), actions.Tap(Point(11, 0))),
        (perform(action="tap", coordinate=[1000, 0], target=None), actions.Tap(Point(1000, 0))),
        (perform(action="type", text="hi", coordinate=[1, 2], enter=True), actions.TypeText("hi", Point(1, 2), True)),
        (perform(action="type", text=""), actions.TypeText("")),
        (perform(action="swipe", coordinate=[1, 2], target2="Trash"), actions.Swipe(Point(1, 2), Target("Trash"))),
        (perform(action="drag", target="a", target2="b"), actions.Drag(Target("a"), Target("b"))),
        (perform(action="long_press", target="a"), actions.LongPress(Target("a"), 1.0)),
        (perform(action="key", key="control+a"), actions.PressKey("control+a")),
        (call({"name": "report_task_complete", "arguments": {"message": "done"}}), actions.ReportTaskComplete("done")),
    ],
)
def test_calls_that_models_write(text: str, action: Action) -> None:
    assert parse_tool_call(text) == action


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "<tool_call>"),
        ("tap Wi-Fi", "<tool_call>"),
        ("<tool_call>{}", "</tool_call>"),
        ("</tool_call><tool_call>", "</tool_call>"),
        (perform(action="tap", target="a") * 2, "several"),
        (call("{"), "JSON"),
        (call(""), "JSON"),
        (call("[" * 100_000), "JSON"),
        (call('{"a":' * 100_000), "JSON"),
        (call("9" * 100_000), "JSON"),
        (call("[]"), "name"),
        (call("null"), "name"),
        (call({"name": "shutdown", "arguments": {}}), "perform_action"),
        (call({"name": ["sleep"], "arguments": {}}), "perform_action"),
        (call({"name": "sleep"}), "arguments"),
        (call({"name": "sleep", "arguments": '{"seconds": 1}'}), "arguments"),
        (call({"name": "sleep", "arguments": {}}), "seconds"),
        (call({"name": "sleep", "arguments": {"seconds": 1e308}}), "seconds"),
        (call({"name": "sleep", "arguments": {"seconds": -1}}), "seconds"),
        (call({"name": "sleep", "arguments": {"seconds": float("nan")}}), "seconds"),
        (call({"name": "sleep", "arguments": {"seconds": True}}), "seconds"),
        (call({"name": "report_task_complete", "arguments": {"message": 3}}), "message"),
        (perform(), "action"),
        (perform(action="fly"), "double_tap"),
        (perform(action={"tap": 1}), "double_tap"),
        (perform(action="tap"), "coordinate"),
        (perform(action="tap", target=""), "target"),
        (perform(action="tap", target=5), "target"),
        (perform(action="tap", target="x" * 100_000), "200"),
        (perform(action="tap", target="\ud800"), "Unicode"),
        (perform(action="tap", target="a", coordinate=[1, 2]), "not both"),
        (perform(action="tap", coordinate=[-5, 0]), "0 to 1000"),
        (perform(action="tap", coordinate=[0, 1001]), "0 to 1000"),
        (perform(action="tap", coordinate=[0, 1000.4]), "0 to 1000"),
        (perform(action="tap", coordinate=[1e308, 0]), "0 to 1000"),
        (perform(action="tap", coordinate=[float("nan"), 0]), "0 to 1000"),
        (perform(action="tap", coordinate=[float("inf"), 0]), "0 to 1000"),
        (perform(action="tap", coordinate=[True, False]), "0 to 1000"),
        (perform(action="tap", coordinate=["1", "2"]), "0 to 1000"),
        (perform(action="tap", coordinate=[1]), "[x, y]"),
        (perform(action="tap", coordinate=[1, 2, 3]), "[x, y]"),
        (perform(action="tap", coordinate="1, 2"), "[x, y]"),
        (perform(action="tap", coordinate={"x": 1, "y": 2}), "[x, y]"),
        (perform(action="swipe", target="a"), "target2"),
        (perform(action="swipe", coordinate=[1, 2], coordinate2=[1, 2000]), "coordinate2"),
        (perform(action="type"), "text"),
        (perform(action="type", text="x" * 100_000), "2000"),
        (perform(action="type", text="a", enter="yes"), "enter"),
        (perform(action="type", text="a", press_enter=True), "enter"),
        (perform(action="scroll", direction="sideways"), "up, down, left, right"),
        (perform(action="scroll", direction=["up"]), "up, down, left, right"),
        (perform(action="button", button="reset"), "volume_up"),
        (perform(action="key", key=""), "key"),
        (perform(action="long_press", target="a", seconds=1e9), "seconds"),
    ],
)
def test_malformed_calls_get_a_short_error_that_names_the_field(text: str, named: str) -> None:
    assert named in error(text)


def test_errors_never_repeat_the_models_words() -> None:
    word = "<|im_start|>ignore"
    for text in (perform(action=word), perform(action="tap", **{word: 1}), call({"name": word, "arguments": {}})):
        assert "ignore" not in error(text)


def test_hundred_kilobytes_are_parsed_at_once() -> None:
    started = time.monotonic()
    for piece in ("a", "<tool_call>", "<tool_call>{", '{"', "[", "\\", "</tool_call>", "<tool_call>\n[["):
        error(piece * (100_000 // len(piece)))
    assert time.monotonic() - started < 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
_KEYS = ("action", "target", "coordinate", "target2", "coordinate2", "text", "enter", "direction", "key", "button")
_WORDS = ("tap", "type", "swipe", "scroll", "drag", "key", "button", "long_press", "up", "home", "")


def arguments() -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), st.sampled_from(_WORDS) | json_values)


@st.composite
def broken_calls(draw: st.DrawFn) -> str:
    """Text that is close to a call: right or wrong names, any argument, cut off anywhere."""
    name = draw(st.sampled_from(["perform_action", "sleep", "report_task_complete"]) | st.text(max_size=8))
    body = json.dumps({"name": name, "arguments": draw(arguments() | json_values)})
    text = f"<tool_call>\n{body}\n</tool_call>"
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@settings(max_examples=300)
@given(st.text() | broken_calls() | st.text().map(call))
def test_the_parser_never_raises(text: str) -> None:
    parsed = parse_tool_call(text)
    if isinstance(parsed, Malformed):
        assert 0 < len(parsed.error) < 120
    else:
        assert parse_tool_call(render_tool_call(parsed)) == parsed


def _points(action: Action) -> Iterator[Point]:
    yield from (value for value in vars(action).values() if isinstance(value, Point))


@given(st.lists(st.floats() | st.integers(), min_size=2, max_size=2))
def test_coordinates_outside_the_screen_are_refused_not_clamped(xy: list[float]) -> None:
    parsed = parse_tool_call(perform(action="tap", coordinate=xy))
    if all(0 <= value <= 1000 for value in xy):
        assert not isinstance(parsed, Malformed)
        assert list(_points(parsed)) == [Point(round(xy[0]), round(xy[1]))]
    else:
        assert isinstance(parsed, Malformed)
