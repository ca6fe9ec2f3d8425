"""`python -m cua_agent.envs.gbox reap` against a local GBox."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gbox_sdk import GboxClient

from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.gbox.__main__ import main
from cua_agent.envs.gbox.leftover_boxes import Selection, reap, seconds_of
from cua_agent.envs.gbox.settings import MADE_BY, GBoxSettings
from cua_agent.envs.local_gbox.faults import Fault, FaultKind, Operation
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running

ROOT = Path(__file__).parents[1]


class Clock:
    """Seconds since the epoch; `ago` is how far in the past the server believes to be."""

    ago = 0.0

    def __call__(self) -> float:
        return time.time() - self.ago


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gbox(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalGBox]:
    with running(clock=clock) as server:
        monkeypatch.setenv("GBOX_API_KEY", server.api_key)
        monkeypatch.setenv("GBOX_CLIENT_BASE_URL", server.base_url)
        yield server


def create(server: LocalGBox, **labels: str) -> str:
    with GboxClient(api_key=server.api_key, base_url=server.base_url) as client:
        return client.v1.boxes.create_android(config={"labels": labels, "expires_in": "10h"}).id


def left(server: LocalGBox) -> set[str]:
    return set(server.ledger()["summary"]["running"])


def test_the_boxes_of_one_run_are_ended_and_no_others(gbox: LocalGBox, capsys: pytest.CaptureFixture[str]) -> None:
    mine = [create(gbox, **MADE_BY, run="a") for _ in range(2)]
    other = create(gbox, **MADE_BY, run="b")
    strangers = {create(gbox, run="a"), create(gbox)}
    assert main(["reap", "--run", "a"]) == 0
    assert left(gbox) == {other} | strangers
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{box}  android running .* run=a  ended$", printed, re.M) for box in mine)
    assert printed.endswith("2 boxes found, 2 ended\n")


def test_the_age_narrows_the_choice(gbox: LocalGBox, clock: Clock) -> None:
    clock.ago = 3600
    old = create(gbox, **MADE_BY, run="a")
    clock.ago = 0
    young = create(gbox, **MADE_BY, run="a")
    stranger = create(gbox)
    assert main(["reap", "--older-than", "2h"]) == 0
    assert left(gbox) == {old, young, stranger}
    assert main(["reap", "--older-than", "30m", "--all-mine"]) == 0
    assert left(gbox) == {young, stranger}
    assert main(["reap", "--all-mine"]) == 0
    assert left(gbox) == {stranger}


def test_a_dry_run_ends_nothing(gbox: LocalGBox, capsys: pytest.CaptureFixture[str]) -> None:
    box = create(gbox, **MADE_BY, run="a")
    assert main(["reap", "--run", "a", "--dry-run"]) == 0
    assert left(gbox) == {box}
    assert "would end" in capsys.readouterr().out


def test_more_boxes_than_fit_on_a_page(gbox: LocalGBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cua_agent.envs.gbox.service._PAGE", 3)
    for _ in range(7):
        create(gbox, **MADE_BY, run="many")
    assert main(["reap", "--run", "many"]) == 0
    assert left(gbox) == set()


def test_what_cannot_be_ended_makes_the_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTerminate:
        def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:
            return Fault(FaultKind.SERVER_ERROR) if operation is Operation.TERMINATE else None

    with running(LocalGBoxOptions(faults=NoTerminate())) as server:
        create(server, **MADE_BY, run="a")
        said: list[str] = []
        settings = GBoxSettings(base_url=server.base_url, api_key=server.api_key)
        monkeypatch.setattr("cua_agent.envs.gbox.calls._BACK_OFF", lambda _: 0.0)
        assert not asyncio.run(reap(settings, Selection("a"), dry_run=False, say=said.append))
    assert "terminate: 500" in said[0]
    assert said[-1] == "1 boxes found, 0 ended, 1 NOT ended"


@pytest.mark.parametrize(("age", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("0s", 0)])
def test_ages(age: str, seconds: float) -> None:
    assert seconds_of(age) == seconds


@pytest.mark.parametrize("arguments", [["--older-than", "30"], ["--older-than", "soon"]])
def test_a_bad_age_is_one_line(gbox: LocalGBox, capsys: Any, arguments: list[str]) -> None:
    assert main(["reap", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--run", "a", "--all-mine"]])
def test_it_must_be_said_which_boxes(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reap", *arguments])
    assert stop.value.code == 2


def test_a_missing_or_wrong_key_is_one_line(gbox: LocalGBox, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GBOX_API_KEY", "nonsense-key")
    assert main(["reap", "--all-mine"]) == 2
    monkeypatch.delenv("GBOX_API_KEY")
    assert main(["reap", "--all-mine"]) == 2
    wrong, missing = capsys.readouterr().err.splitlines()
    assert "refuses the key: 401" in wrong and "nonsense-key" not in wrong
    assert "GBOX_API_KEY" in missing


def test_a_service_that_does_not_answer_makes_the_status_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("GBOX_API_KEY", "k")
    monkeypatch.setattr("cua_agent.envs.gbox.calls._BACK_OFF", lambda _: 0.0)
    assert main(["reap", "--all-mine", "--base-url", "http://127.0.0.1:1/api/v1"]) == 1
    assert capsys.readouterr().err.startswith("error: list: ")


def test_the_settings_hold_no_key_that_could_be_printed() -> None:
    assert "hush" not in repr(GBoxSettings(api_key="hush"))
    with pytest.raises(WorldUnavailable):
        asyncio.run(reap(GBoxSettings(api_key=" "), Selection(), dry_run=True, say=print))


@pytest.mark.slow
def test_the_command_as_a_person_types_it(gbox: LocalGBox) -> None:
    box = create(gbox, **MADE_BY, run="a")
    command = [sys.executable, "-m", "cua_agent.envs.gbox", "reap", "--run", "a"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert box in done.stdout
