"""Keys and typed text mean the same in every world."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent import actions
from cua_agent.actions import Action
from cua_agent.envs.gbox.gestures import NoGesture, gestures_of
from cua_agent.envs.pocket.gestures import apply_action
from cua_agent.envs.web import gestures as web
from cua_agent.keys import UnknownKey, keys_of, named
from cua_agent.typed_text import MAX_TEXT, untypeable
from tests.pocket_rig import phone

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+- "
NAMES = named(("Enter", "ArrowUp", "PageDown", "Control", "Shift", "Meta", "F1", "F2"))


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        *((name, ["Enter"]) for name in ("Enter", "enter", "ENTER", "Return", " return ")),
        *((name, ["ArrowUp"]) for name in ("ArrowUp", "arrow_up", "Arrow Up", "arrow-up", "Up", "UP")),
        *((name, ["PageDown"]) for name in ("page_down", "PgDn", "pgdown", "Page Down")),
        *((name, ["Control", "a"]) for name in ("Ctrl+A", "control+a", "ctrl + a", "CTRL-A", "ctrl a")),
        ("Ctrl+Shift+T", ["Control", "Shift", "t"]),
        ("ctrl++", ["Control", "+"]),
        ("ctrl+-", ["Control", "-"]),
        ("Cmd", ["Meta"]),
        ("f2", ["F2"]),
        ("A", ["A"]),
        ("+", ["+"]),
        ("-", ["-"]),
        (" ", [" "]),
    ],
)
def test_one_key_has_many_names(written: str, keys: list[str]) -> None:
    assert keys_of(written, NAMES, LETTERS) == keys


@pytest.mark.parametrize("written", ["", "ctrl+", "+ctrl", "entre", "ctrl+entre", "ß", "\n", "f3"])
def test_an_unknown_key_is_answered_with_those_there_are(written: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        keys_of(written, NAMES, LETTERS)
    assert str(caught.value).endswith("; allowed: enter, arrowup, pagedown, control, shift, meta, f1 to f2, characters")


@given(st.text(max_size=30))
def test_any_text_is_keys_or_unknown(written: str) -> None:
    try:
        assert keys_of(written, NAMES, LETTERS)
    except UnknownKey as unknown:
        assert len(str(unknown)) < 320  # 20 characters are repeated, each of them ten when it has to be escaped


def on_the_phone(action: Action) -> str | None:
    return apply_action(phone("Browser", focus="Address bar"), action)


def on_a_box(action: Action) -> str | None:
    try:
        gestures_of(action, (1080, 2400), "android")
    except NoGesture as reason:
        return str(reason)
    return None


def on_a_page(action: Action) -> str | None:
    try:
        asyncio.run(web.perform(_Page(), action, (160, 210)))
    except web.ActionRefused as reason:
        return str(reason)
    return None


class _Page:
    """A page whose one-line field takes whatever is typed."""

    def __init__(self) -> None:
        self.keyboard, self.text = self, ""

    async def evaluate(self, expression: str) -> str:
        return "line" if expression == "cua.focus()" else self.text

    async def press(self, key: str) -> None: ...

    async def type(self, text: str) -> None:
        self.text += text

    async def insert_text(self, text: str) -> None:
        await self.type(text)


WORLDS: list[Any] = [on_the_phone, on_a_box, on_a_page]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("key", ["enter", "Enter", "Return", "RETURN", "Backspace", "back_space", "Escape", "Esc"])
def test_every_world_knows_the_usual_keys(world: Callable[[Action], str | None], key: str) -> None:
    assert world(actions.PressKey(key)) is None


@pytest.mark.parametrize("world", WORLDS)
def test_every_world_says_which_keys_it_knows(world: Callable[[Action], str | None]) -> None:
    answer = world(actions.PressKey("entre"))
    assert answer is not None and answer.startswith("unknown key 'entre'; allowed: ") and "backspace" in answer
    assert len(answer) <= 500  # all of it is shown to the model


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x" * MAX_TEXT, None),
        ("  two  spaces \t and a tab ", None),
        ("Zürich 北京 🚆", None),
        ("x" * (MAX_TEXT + 1), "nothing was typed: the text has 2001 characters, 2000 are possible"),
        ("a\x07b", "nothing was typed: the text holds a control character or half a surrogate pair"),
        ("a\ud800b", "nothing was typed: the text holds a control character or half a surrogate pair"),
    ],
    ids=["long", "spaces", "letters", "too long", "control", "surrogate"],
)
def test_every_world_types_a_text_as_it_is_or_says_why_not(
    world: Callable[[Action], str | None], text: str, answer: str | None
) -> None:
    assert world(actions.TypeText(text)) == answer


@pytest.mark.parametrize("world", [on_the_phone, on_a_page])
@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "x" * 300 + "\n"])
def test_a_field_of_one_line_takes_no_line_breaks(world: Callable[[Action], str | None], text: str) -> None:
    assert world(actions.TypeText(text)) == "nothing was typed: this field holds one line and the text has several"


def test_a_field_of_several_lines_takes_them() -> None:
    assert untypeable("a\nb\tc\r\n", lines=True) is None
    assert on_a_box(actions.TypeText("a\nb")) is None


def test_a_field_that_changes_what_is_typed_is_told() -> None:
    class Short(_Page):
        async def type(self, text: str) -> None:
            self.text = text[:3]

    with pytest.raises(web.ActionRefused, match="the field did not take the text as it is; it holds 'hel'"):
        asyncio.run(web.perform(Short(), actions.TypeText("hello", press_enter=True), (160, 210)))
