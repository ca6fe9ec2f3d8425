"""What a killed process leaves in the temporary directory goes with the next one."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cua_agent.scratch import held, is_abandoned, scratch_directory, temporary_files_in

HOLDS = """
import os, signal, sys
from cua_agent.scratch import scratch_directory
with scratch_directory("test") as path:
    (path / "file").touch()
    print(path, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    (tmp_path / "cua-grpo-of-somebody-else").mkdir()
    with scratch_directory("test") as ours:
        assert ours.is_dir() and (theirs / "file").exists()
    process.communicate()
    with scratch_directory("test"):
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cua-grpo-of-somebody-else"]


def test_a_directory_is_abandoned_when_it_was_held_and_is_no_longer(tmp_path: Path) -> None:
    assert not is_abandoned(tmp_path)
    with held(tmp_path):
        assert not is_abandoned(tmp_path)
    assert is_abandoned(tmp_path)


def test_temporary_files_are_where_they_are_wanted_and_then_elsewhere_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with temporary_files_in(place):
        made = Path(tempfile.mkdtemp())
        seen = subprocess.run([sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"], stdout=-1).stdout
    assert made.parent == place and seen.decode().strip() == str(place)
    assert Path(tempfile.mkdtemp()).parent == tmp_path
