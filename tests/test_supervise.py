"""The supervisor, with real processes in the place of a run."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainers import supervise
from trainers.supervise import Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

STARTS = (
    "import pathlib, sys; place = pathlib.Path(sys.argv[1]); n = len(list(place.iterdir())); (place / str(n)).touch(); "
)
"""Counts its starts in `n`, from 0."""


def supervised(place: Path, script: str, failures: int = 3, progress: Sequence[int] = (-1,)) -> tuple[int, int]:
    """Exit status of the supervisor of a script, and how often it was started; `progress` is what it has saved before
    each start, the last value from then on."""
    saved = list(progress)
    command = [sys.executable, "-c", STARTS + script, str(place)]
    status = Supervisor(lambda: command, lambda: saved.pop(0) if len(saved) > 1 else saved[0], failures).run()
    return status, len(list(place.iterdir()))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_LONGEST_WAIT_S", 0.01)


def test_a_run_is_started_again_until_it_is_done(tmp_path: Path) -> None:
    assert supervised(tmp_path, "sys.exit(0 if n == 2 else 1)") == (0, 3)


def test_a_run_that_is_killed_is_started_again(tmp_path: Path) -> None:
    assert supervised(tmp_path, "import os; n or os.kill(os.getpid(), 9)") == (0, 2)


@pytest.mark.parametrize("status", [2, 130])
def test_what_would_end_the_same_way_or_was_wanted_is_not_started_again(tmp_path: Path, status: int) -> None:
    assert supervised(tmp_path, f"sys.exit({status})") == (status, 1)


def test_so_many_failures_in_a_row_are_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervised(tmp_path, "sys.exit(1)", failures=3) == (1, 3)
    *_, last = capfd.readouterr().err.splitlines()
    assert last == "supervise: the run ended with status 1; given up after 3 starts that saved nothing new"


def test_a_start_that_saved_something_is_no_failure(tmp_path: Path) -> None:
    assert supervised(tmp_path, "sys.exit(1)", failures=2, progress=(-1, -1, 4, 4, 7, 7, 7)) == (1, 6)


SUPERVISED = '''
import sys
from trainers.supervise import Supervisor
child = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print('up', flush=True)
time.sleep(300)
"""
sys.exit(Supervisor(lambda: [sys.executable, "-c", child], lambda: 0, 3).run())
'''


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_is_passed_on_and_the_run_does_not_outlive_its_supervisor(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.stdout.read() == ""  # the run has closed it, too
    assert process.wait(60) == (130 if number == signal.SIGTERM else -number)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["max_steps=3"], "error: run_name: must be set"),
        (["run_name=a", "--failures", "0"], "error: --failures 0: allowed: a number above 0"),
        (["run_name=a", "max_steps=x"], "error: max_steps=x: "),
    ],
)
def test_what_cannot_be_supervised_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert supervise.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(words) and error.count("\n") == 1


def test_the_command_goes_on_with_what_there_is(tmp_path: Path) -> None:
    config = supervise.load_config(["run_name=a", f"output_dir={tmp_path}"])
    typed = ["run_name=a", f"output_dir={tmp_path}", "resume=/somewhere"]
    assert supervise._command(config, typed)[3:] == typed
    assert supervise._command(config, typed[:2])[3:] == [*typed[:2], "resume=auto"]
