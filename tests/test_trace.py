"""The trace page and the command that writes it."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cua_agent import __main__ as cli
from cua_agent.actions import Point, ReportTaskComplete, Tap, Target
from cua_agent.agent import AgentConfig, Episode, StandaloneGBoxCUAAgent
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.parsing import render_tool_call
from cua_agent.tasks import CUATask, get_training_tasks
from cua_agent.trace import render_trace
from tests import tiny_random
from tests.agent_fakes import ByteCodec, ScriptedEngine, ScriptedEnvironment, task

DONE = render_tool_call(ReportTaskComplete())
TASK = get_training_tasks("pocket")[0].id


class Page(HTMLParser):
    """Counts the tags and collects the text and the images of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.images: list[bytes] = []
        self.styles: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        values = dict(attrs)
        if tag == "img":
            self.images.append(base64.b64decode((values["src"] or "").removeprefix("data:image/png;base64,")))
        if values.get("class") == "mark":
            self.styles.append(values["style"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def episode(script: list[str | Exception], **world: Any) -> Episode:
    agent = StandaloneGBoxCUAAgent(
        ByteCodec(),
        ScriptedEngine(script),
        ScriptedEnvironment({"OK": Point(0, 1000)}, **world),
        AgentConfig(max_length=10**6, keep_screenshots=True),
    )
    return asyncio.run(agent.play(task(), 5, group_id="g", episode_id="e"))


def test_the_page_shows_every_turn() -> None:
    html = render_trace(episode([render_tool_call(Tap(Target("OK"))), "what?", DONE], score=1.0), {"model": "tiny"})
    page = Page(html)
    assert len(page.images) == 4 and all(image.startswith(b"\x89PNG") for image in page.images)
    assert page.styles == ["left: 0.05%; top: 99.95%"]  # the middle of the first and of the last of 1001 steps
    for shown in (
        "Turn Wi-Fi on",
        "success",
        "tiny",
        "1. tap target=OK",
        "2. malformed call",
        "what?",
        "expected exactly",
    ):
        assert shown in page.text
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "image-rendering: pixelated" in html


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_everything_foreign_is_escaped() -> None:
    tap = render_tool_call(Tap(Target(HOSTILE)))
    harmless = Page(render_trace(episode([render_tool_call(Tap(Target("x"))), "x", DONE], goal="x"), {"model": "x"}))
    hostile = episode([tap, HOSTILE, DONE], goal=HOSTILE)
    page = Page(render_trace(hostile, {"model": HOSTILE}))
    assert page.tags == harmless.tags and "script" not in page.tags
    # Goal (title and heading), model, the turn's words, the action and the error that repeats the name.
    assert page.text.count(HOSTILE) >= 5


def test_a_lost_episode_says_why() -> None:
    page = Page(render_trace(episode([DONE], reset_error=EnvironmentFailure("no box <free>")), {}))
    assert "infra error" in page.text and "no box <free>" in page.text
    assert page.images == []


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from cua_agent.trace import write_trace

    caplog.set_level("CRITICAL", "cua_agent")  # pytest's own processes cannot send each other such a log
    lost = episode([DONE], reset_error=EnvironmentFailure("\ud800"))
    write_trace(tmp_path / "trace.html", lost, {})
    assert (tmp_path / "trace.html").read_bytes().decode()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["tusk=a"], ["tusk=a", "task", "env"]),
        (["seed"], ["'seed'", "task"]),
        (["seed=abc"], ["seed=abc", "integer"]),
        (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
        (["env=ios"], ["env.name=ios", "gbox,", "miniwob,", "pocket,", "package.module:factory"]),
        (["layout=2"], ["layout=2", "'fixed', 'themed' or 'shuffled'"]),
        (["temperature=0"], ["temperature=0", "greater than 0"]),
        (["temperature=nan"], ["temperature=nan", "finite"]),
        (["greedy=maybe"], ["greedy=maybe", "boolean"]),
        (["x" * 100_000], ["task"]),
        (["seed=" + "9" * 100_000], ["seed="]),
    ],
)
def test_bad_options_are_one_line(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(cli.OptionError) as caught:
        cli.parse_options(overrides)
    message = str(caught.value)
    assert all(part in message for part in named)
    assert "\n" not in message and len(message) < 400


def test_options_and_what_they_mean_for_the_model() -> None:
    options = cli.parse_options(["task=a", "env=miniwob", "seed=3", "greedy=true", "temperature=0.5"])
    assert (options.task, options.env, options.seed, options.greedy) == ("a", "miniwob", 3, True)
    tiny = cli.agent_config(options)
    assert (tiny.grounding, tiny.prompt, tiny.temperature, tiny.greedy) == ("target", "brief", 0.5, True)
    large = cli.agent_config(cli.parse_options(["model=Qwen/Qwen3-VL-4B-Instruct", "max_new_tokens=99"]))
    assert (large.grounding, large.prompt, large.max_new_tokens) == ("coordinates", "full", 99)


def test_an_unknown_task_gets_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"task={TASK[:-1]}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and TASK in error and "--list env=pocket" in error


def test_every_task_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list", "env=miniwob"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(cli.all_tasks(cli.parse_options(["env=miniwob"]))) and "miniwob/click-test" in listed


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (None, 0),
        (EnvironmentFailure("dead"), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("bug"), 1),
        (cli.OptionError("no"), 2),
    ],
)
def test_exit_status(
    result: BaseException | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(options: cli.Options, chosen: CUATask) -> Episode:
        if isinstance(result, EnvironmentFailure):
            return await asyncio.to_thread(episode, [DONE], reset_error=result)
        if result is not None:
            raise result
        return await asyncio.to_thread(episode, [DONE])

    monkeypatch.setattr(cli, "play", play)
    out = tmp_path / "new" / "trace.html"
    assert cli.main([f"task={TASK}", f"out={out}"]) == status
    if result is None or isinstance(result, EnvironmentFailure):
        assert "Turn Wi-Fi on" in out.read_text()


def test_a_missing_model_and_an_unwritable_page_are_bad_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for override, named in ((f"model={tmp_path}/none", "no such directory"), (f"out={tmp_path}/file/x", "cannot be")):
        assert cli.main([f"task={TASK}", f"out={tmp_path}/t.html", override]) == 2
        assert not (tmp_path / "t.html").exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and named in error


def test_a_missing_browser_is_bad_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_random.build(tmp_path / "model")
    overrides = ["env=miniwob", "task=miniwob/click-test", "browser_path=/no/such", f"model={model}"]
    assert cli.main([*overrides, f"out={tmp_path}/t.html"]) == 2
    assert "browser_path='/no/such'" in capsys.readouterr().err


def test_an_episode_of_a_real_model_on_the_phone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_random.build(tmp_path / "model")
    out = tmp_path / "trace.html"
    overrides = [f"task={TASK}", f"model={model}", f"out={out}", "prompt=brief", "max_new_tokens=8", "max_length=480"]
    assert cli.main(overrides) == 0
    assert "out_of_turns" in capsys.readouterr().out
    page = Page(out.read_text())
    assert len(page.images) >= 2 and "malformed call" in page.text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, cua_agent.__main__ as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'playwright'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "browser_path=" in done.stdout
