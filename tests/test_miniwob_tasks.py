"""MiniWoB++ without a browser: tasks, verdicts, gestures, one-line errors."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cua_agent import actions
from cua_agent.actions import Button, Direction, Point, Target
from cua_agent.envs.miniwob.browser import BrowserMissing, MiniWobBrowser
from cua_agent.envs.miniwob.page import HEIGHT, SIZE, WIDTH
from cua_agent.envs.miniwob.tasks import RAW_REWARD, MiniWobValidator, eval_tasks, training_tasks
from cua_agent.envs.web.gestures import ActionRefused, perform
from cua_agent.tasks import get_eval_tasks, get_training_tasks

REQUIRED = {
    "click-test", "click-button", "click-dialog", "click-tab", "click-checkboxes", "click-option", "enter-text",
    "focus-text", "login-user", "scroll-text-2", "drag-box",
}  # fmt: skip


def test_task_lists():
    training, held_out = training_tasks(), eval_tasks("templates")
    names = [task.category for task in training + held_out]
    assert len(training) >= 30
    assert len(names) == len(set(names)), "a page is in both lists or twice in one"
    assert {task.category for task in training} >= REQUIRED
    assert all(task.id == f"miniwob/{task.category}" for task in training + held_out)
    assert eval_tasks("seeds") == training == get_training_tasks("miniwob")
    assert get_eval_tasks("miniwob", "templates") == held_out


def test_task_lists_import_nothing_heavy():
    code = (
        "import sys, cua_agent.envs.miniwob.tasks as t; t.training_tasks();"
        "print(sorted({'torch', 'playwright', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("verdict", "score"), [("-1", 0.0), ("0", 0.0), ("0.4", 0.4), ("1", 1.0), ("NaN", 0.0)])
def test_verdict_is_clipped(verdict, score):
    asked = []

    async def probe(expression):
        asked.append(expression)
        return verdict

    validator = MiniWobValidator()
    assert asyncio.run(validator.snapshot(probe)) == {}
    assert asyncio.run(validator.score(probe, {})) == score
    assert asked == [RAW_REWARD]
    assert "WOB_RAW_REWARD_GLOBAL" in RAW_REWARD, "the other reward decays over time"


def test_missing_browser_is_one_line():
    with pytest.raises(BrowserMissing) as caught:
        MiniWobBrowser("/nowhere/chromium")
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("env.args.browser_path", "/nowhere/chromium", "make browser"))


def test_every_pixel_has_a_point_that_leads_back_to_it():
    point_of = pytest.importorskip("cua_agent.envs.web.page").point_of
    for column in range(WIDTH):
        for row in range(HEIGHT):
            assert point_of(column, row, SIZE).to_pixels(WIDTH, HEIGHT) == (column, row)


class FakePage:
    """Records what Playwright is asked to do; `focused` is what the page says about its focus."""

    def __init__(self, focused="line"):
        self.calls = []
        self._focused = focused
        self.mouse = SimpleNamespace(
            **{name: self._record(name) for name in ("click", "dblclick", "move", "down", "up", "wheel")}
        )
        self.keyboard = SimpleNamespace(**{name: self._record(name) for name in ("press", "type", "insert_text")})

    def _record(self, name):
        async def call(*args, **options):
            self.calls.append((name, *args))

        return call

    async def evaluate(self, expression):
        return self._focused if expression == "cua.focus()" else None


def performed(action, **page_options):
    page = FakePage(**page_options)
    asyncio.run(perform(page, action, SIZE))
    return page.calls


def test_gestures():
    middle = Point(500, 500)  # pixel (79, 104) of 160 x 210
    assert performed(actions.Tap(middle)) == [("click", 79, 104)]
    assert performed(actions.DoubleTap(middle)) == [("dblclick", 79, 104)]
    assert performed(actions.Scroll(Direction.DOWN)) == [("move", 80, 105), ("wheel", 0, 105)]
    assert performed(actions.Scroll(Direction.LEFT, middle)) == [("move", 79, 104), ("wheel", -80, 0)]
    # A finger that moves up by 104 pixels pulls the content up with it.
    assert performed(actions.Swipe(middle, Point(500, 0))) == [("move", 79, 104), ("wheel", 0, 104)]
    assert performed(actions.Drag(middle, Point(0, 0))) == [("move", 79, 104), ("down",), ("move", 0, 0), ("up",)]


def test_typing_replaces_what_the_field_holds():
    assert performed(actions.TypeText("ab", Point(500, 500), press_enter=True)) == [
        ("click", 79, 104), ("press", "Control+a"), ("type", "ab"), ("press", "Enter"),
    ]  # fmt: skip
    assert performed(actions.TypeText("")) == [("press", "Control+a"), ("press", "Delete")]
    assert performed(actions.TypeText("Ru"), focused="select") == [("type", "Ru")]
    assert performed(actions.TypeText("x" * 2000))[-1] == ("insert_text", "x" * 2000)
    assert performed(actions.TypeText("a\nb"), focused="lines")[-1] == ("type", "a\nb")
    for text, focused, why in (
        ("ab", "", "no text field is focused"),
        ("x" * 2001, "line", "2000 are possible"),
        ("a\nb", "line", "this field holds one line"),
        ("\ud800", "line", "half a surrogate pair"),
    ):
        with pytest.raises(ActionRefused, match=why):
            performed(actions.TypeText(text), focused=focused)


def test_keys():
    assert performed(actions.PressKey("enter")) == [("press", "Enter")]
    assert performed(actions.PressKey("Control+A")) == [("press", "Control+a")]
    assert performed(actions.PressKey("+")) == [("press", "+")]
    assert performed(actions.PressKey("ctrl+end")) == [("press", "Control+End")]
    for rubbish in ("", "entr", "control+", "é", "a" * 10_000, "\n"):
        with pytest.raises(ActionRefused, match="unknown key") as caught:
            performed(actions.PressKey(rubbish))
        assert "allowed: enter, tab" in str(caught.value)
        assert len(str(caught.value)) < 250


def test_what_a_page_does_not_have():
    with pytest.raises(ActionRefused, match="no home button"):
        performed(actions.PressButton(Button.HOME))
    with pytest.raises(TypeError, match="not grounded"):
        performed(actions.Tap(Target("OK")))
