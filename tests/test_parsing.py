"""The parser: exact on canonical calls, calm about everything else."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent import actions
from cua_agent.actions import Action, Button, Direction, Point, Target
from cua_agent.parsing import Malformed, describe, parse_tool_call, render_tool_call, tool_call

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


CORPUS = yaml.safe_load((Path(__file__).parent / "data" / "tool_calls.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["text"][-60:])
def test_the_corpus_of_what_models_write(case: dict[str, Any]) -> None:
    space = tuple(case["space"]) if "space" in case else None
    parsed = parse_tool_call(case["text"], space, truncated=case.get("truncated", False))
    if "error" in case:
        assert isinstance(parsed, Malformed) and case["error"] in parsed.error and len(parsed.error) < 120
        return
    assert not isinstance(parsed, Malformed), parsed.error
    call = tool_call(parsed)
    assert (call["arguments"] if "action" in case["means"] else call) == case["means"]


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
        ("<tool_call>{}", "name"),
        ("</tool_call><tool_call>", "</tool_call>"),
        (perform(action="tap", target="a") * 2, "several"),
        (call("{"), "name"),
        (call(""), "JSON"),
        (call("[" * 100_000), "JSON"),
        (call('{"a":' * 100_000), "JSON"),
        (call("9" * 100_000), "JSON"),
        (call("[]"), "name"),
        (call("null"), "name"),
        (call({"name": "shutdown", "arguments": {}}), "perform_action"),
        (call({"name": ["sleep"], "arguments": {}}), "perform_action"),
        (call({"name": "sleep"}), "seconds"),
        (call({"name": "sleep", "arguments": "1 second"}), "arguments"),
        (call({"name": "sleep", "arguments": "[" * 10_000}), "arguments"),
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
        (perform(action="tap", coordinate=["1", "2 cm"]), "0 to 1000"),
        (perform(action="tap", coordinate=["9" * 10_000, "2"]), "0 to 1000"),
        (perform(action="tap", coordinate=[1]), "[x, y]"),
        (perform(action="tap", coordinate=[1, 2, 3]), "[x, y]"),
        (perform(action="tap", coordinate="1, 2, 3"), "[x, y]"),
        (perform(action="tap", coordinate={"x": 1, "z": 2}), "[x, y]"),
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


def test_hundred_kilobytes_of_anything_are_an_error() -> None:
    for piece in ("a", "<tool_call>", "<tool_call>{", '{"', "[", "\\", "</tool_call>", "<tool_call>\n[["):
        error(piece * (100_000 // len(piece)))


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


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.text() | broken_calls() | st.text().map(call))
def test_the_parser_never_raises(text: str) -> None:
    parsed = parse_tool_call(text)
    if isinstance(parsed, Malformed):
        assert 0 < len(parsed.error) < 120
    else:
        assert parse_tool_call(render_tool_call(parsed)) == parsed


_fragments = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "<think>", "</think>", "```", "}", '"', "'", "\\", "\n", "\t", "True", "a"]
    ),
    max_size=6,
).map("".join)
_typed = st.builds(actions.TypeText, _fragments, st.none() | st.builds(Target, _name), st.booleans())
_ways_to_write = st.fixed_dictionaries({"indent": st.none() | st.integers(0, 3), "ensure_ascii": st.booleans()})


@settings(deadline=None)
@given(any_action | _typed, _ways_to_write)
def test_nothing_valid_changes_its_meaning(action: Action, how: dict[str, Any]) -> None:
    assert parse_tool_call(call(json.dumps(tool_call(action), **how))) == action


@dataclass(frozen=True)
class Style:
    """What of JSON's rules a writer breaks without becoming ambiguous."""

    quote: str
    raw_controls: bool
    trailing_commas: bool
    bare_keys: bool
    python_words: bool
    numbers_as_text: bool

    def write(self, value: Any) -> str:
        comma = "," if self.trailing_commas else ""
        match value:
            case dict():
                items = [f"{key if self.bare_keys else self.string(key)}: {self.write(v)}" for key, v in value.items()]
                return "{" + ", ".join(items) + (comma if items else "") + "}"
            case list():
                return "[" + ", ".join(map(self.write, value)) + comma + "]"
            case str():
                return self.string(value)
            case bool():
                return str(value) if self.python_words else str(value).lower()
            case _:
                return self.string(json.dumps(value)) if self.numbers_as_text else json.dumps(value)

    def string(self, text: str) -> str:
        for plain, escape in (("\\", "\\\\"), (self.quote, "\\" + self.quote)):
            text = text.replace(plain, escape)
        if not self.raw_controls:
            text = "".join(f"\\u{ord(letter):04x}" if letter < " " else letter for letter in text)
        return self.quote + text + self.quote


_flag = st.booleans()
_styles = st.builds(Style, st.sampled_from("'\""), _flag, _flag, _flag, _flag, _flag)
_ends = st.sampled_from(
    ["}}\n</tool_call>", "}}", "}</tool_call>", "}}}\n</tool_call>", "\n</tool_call>", "}}\n```\n</tool_call>"]
)
_moderate = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_named = st.builds(Target, _moderate.filter(bool))
_certain = st.one_of(
    st.builds(actions.TypeText, _moderate | _fragments, st.none() | _named, st.booleans()),
    st.builds(actions.Tap, _location),
    st.builds(actions.LongPress, _named, st.integers(0, 30).map(float)),
    st.builds(actions.Swipe, _location, _location),
)


@settings(max_examples=200, deadline=None)
@given(_certain, _styles, _ends)
def test_what_can_only_mean_one_thing_is_understood(action: Action, style: Style, end: str) -> None:
    body = style.write(tool_call(action))
    assert body.endswith("}}") or style.trailing_commas
    inner = body.rstrip("},")  # the brackets that close the arguments and the call
    assert parse_tool_call(f"<tool_call>\n{body}\n</tool_call>") == action
    if not inner.endswith((":", "{", "[")):
        assert parse_tool_call(f"<tool_call>\n{inner}{end}") == action


@settings(deadline=None)
@given(_certain, _certain, st.data())
def test_what_may_mean_several_things_is_refused(first: Action, second: Action, data: st.DataObject) -> None:
    body = json.dumps(tool_call(first))
    assert isinstance(parse_tool_call(call(body) + call(json.dumps(tool_call(second)))), Malformed)
    assert isinstance(parse_tool_call(call(f"{body}\n{json.dumps(tool_call(second))}")), Malformed)
    quotes = [at for at, letter in enumerate(body) if letter == '"' and body[at - 1] != "\\" and "'" not in body]
    if quotes:
        at = data.draw(st.sampled_from(quotes))
        assert isinstance(parse_tool_call(call(body[:at] + body[at + 1 :])), Malformed)


@settings(deadline=None)
@given(_certain, _styles, st.data())
def test_a_call_that_the_token_limit_cut_off_is_never_completed(
    action: Action, style: Style, data: st.DataObject
) -> None:
    body = style.write(tool_call(action))
    cut = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(parse_tool_call(f"<tool_call>\n{body[:cut]}", truncated=True), Malformed)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CORPUS), st.data())
def test_damaged_calls_of_the_corpus_never_raise(case: dict[str, Any], data: st.DataObject) -> None:
    text = case["text"]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    inserted = data.draw(
        st.sampled_from(["", '"', "'", "}", "]", "\\", "<tool_call>", "</tool_call>", "<think>", "\ud800"])
    )
    damaged = text[:start] + inserted + text[end:]
    for space in (None, (1092, 2408)):
        parsed = parse_tool_call(damaged, space, truncated=data.draw(st.booleans()))
        assert not isinstance(parsed, Malformed) or 0 < len(parsed.error) < 120


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
