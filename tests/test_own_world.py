"""The world of docs/environments.md, in a file of one's own outside the repository: everything works with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.miniwob_rig import needs_browser

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WORLD = "env=todo_world:TodoWorld"
SHORT = (
    *("experiment=quick", "max_steps=1", "threads=1", "rollout.groups_per_step=1", "rollout.group_size=2"),
    *("rollout.max_turns=2", "eval.baseline=false", "eval.episodes=2", "reward.partial=0.5", "env.args.entries=2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but the file."""
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    directory = tmp_path_factory.mktemp("mine")
    (directory / "todo_world.py").write_text(block[1], encoding="utf-8")
    return directory


def called(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if words[0] == "-m":
        environment["PYTHONPATH"] = str(ROOT)  # where our packages are; what is in the directory is found by itself
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return called(folder, str(ROOT / "train.py"), *words)


def test_the_file_is_as_short_as_promised(folder: Path) -> None:
    assert len((folder / "todo_world.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("env.args.entries=9", "error: env.args.entries=9: must be less than or equal to 5\n"),
        ("env.args.entrys=2", "error: env.args.entrys=2: unknown key; did you mean env.args.entries?\n"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(folder: Path, option: str, words: str) -> None:
    done = train(folder, WORLD, option)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", words)
    assert not (folder / "outputs").exists() or not list((folder / "outputs").glob("2*"))


def test_its_tasks_are_listed(folder: Path) -> None:
    done = called(folder, "-m", "cua_agent", WORLD, "entries=1", "--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["todo/Milk/tick", "todo/Milk/word"]


class TestForReal:
    pytestmark = needs_browser

    def test_it_plays(self, folder: Path) -> None:
        done = called(folder, "-m", "cua_agent", WORLD, "env.args.entries=2", "task=todo/Bread/tick", "out=page.html")
        assert (done.returncode, done.stderr) == (0, "")
        assert "todo_world:TodoWorld" in (folder / "page.html").read_text()

    def test_it_trains_on_legacy_goes_on_and_is_compared(self, folder: Path) -> None:
        for seed in (0, 1):
            done = train(folder, WORLD, "backend=legacy", *SHORT, f"seed={seed}", f"run_name=legacy{seed}")
            assert done.returncode == 0, done.stderr
        done = train(folder, "resume=outputs/legacy0", "max_steps=2", "run_name=longer")
        assert done.returncode == 0, done.stderr
        steps = [json.loads(line) for line in (folder / "outputs/longer/metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps] == [2] and 0 <= steps[0]["score_mean"] <= 1
        done = called(folder, str(ROOT / "compare.py"), "runs=[outputs/legacy0,outputs/legacy1]", "out=report")
        assert done.returncode == 0, done.stderr
        assert (folder / "report" / "compare.html").is_file()

    @pytest.mark.parametrize("words", ["phase=2", "phase=3"])
    def test_it_trains_on_areal(self, folder: Path, words: str) -> None:
        pytest.importorskip("areal")
        done = train(folder, WORLD, *SHORT, words, f"run_name={words}")
        assert done.returncode == 0, done.stderr
        summary = json.loads((folder / "outputs" / words / "summary.json").read_text())
        assert (summary["steps"], summary["backend"]) == (1, "areal")
