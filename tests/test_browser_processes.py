"""Training on pages in real Chromium, in a process as a person starts it: the browser dies, and the trainer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.miniwob_rig import needs_browser

pytestmark = needs_browser

ROOT = Path(__file__).parents[1]
QUICK = [
    "env=miniwob",
    "experiment=quick",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "rollout.concurrency=4",
]
SHORT = ["eval.baseline=false", "eval.episodes=2", "logging.tensorboard=false", "threads=1", "run_name=run"]


def start(directory: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run whose temporary files are in `directory`/tmp, and what it says in `directory`/log."""
    (directory / "tmp").mkdir(exist_ok=True)
    with (directory / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *QUICK, *SHORT, f"output_dir={directory}", *overrides],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory / "tmp"), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=log,
            stderr=log,
            cwd=directory,
        )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], directory: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.2)


def pages(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the run's browser that draw pages."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "--type=renderer" in cmdline(child)]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def browser_of(page: psutil.Process) -> psutil.Process:
    """The process above all others of a browser."""
    chain = [page, *page.parents()]
    return next(each for each in chain if "chrom" in each.name() and not any("--type=" in w for w in cmdline(each)))


def left_by_browsers(directory: Path) -> list[str]:
    names = [path.name for path in (directory / "tmp").iterdir()]
    return [name for name in names if any(word in name.lower() for word in ("cua-grpo", "playwright", "chrom"))]


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_a_browser_that_dies_during_a_step_costs_its_episodes_and_no_step(backend: str, tmp_path: Path) -> None:
    process = start(tmp_path, f"backend={backend}", "max_steps=2")
    wait_until(lambda: len(pages(process)) >= 2, process, tmp_path)
    time.sleep(1)  # episodes are under way
    browser_of(pages(process)[0]).kill()
    assert process.wait(500) == 0, (tmp_path / "log").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert sum(row["episodes_infra_error"] for row in rows) >= 1 or backend == "areal"  # its group may go on
    said = (tmp_path / "log").read_text()
    assert " is lost: " in said and "Traceback" not in said
    assert left_by_browsers(tmp_path) == []


def test_what_a_killed_trainers_browser_leaves_goes_with_the_next_run(tmp_path: Path) -> None:
    process = start(tmp_path, "backend=legacy", "max_steps=50")
    wait_until(lambda: pages(process), process, tmp_path)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert len(left_by_browsers(tmp_path)) == 1
    again = start(tmp_path, "backend=legacy", "max_steps=1", "resume=auto")
    assert again.wait(500) == 0, (tmp_path / "log").read_text()
    assert left_by_browsers(tmp_path) == []
