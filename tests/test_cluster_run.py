"""Single-controller mode on this machine: AReaL's schedulers start real workers, which train and end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainers.run.checkpoint_files import read_state
from trainers.watch.recording import Recording

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=quick", "eval.episodes=4", "threads=1", "rollout.group_size=4", "checkpoint.every_steps=1"]


def start(scheduler: str, directory: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "train.py", f"scheduler={scheduler}", f"output_dir={directory}", *QUICK]
    return subprocess.Popen(
        [*map(str, command), *overrides],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes under `process`, training first."""
    children = psutil.Process(process.pid).children(recursive=True)
    python = [child for child in children if "python" in child.name()]
    served = [child for child in python if "trainers.areal.cluster.worker_process" in child.cmdline()]
    return sorted(served, key=lambda child: child.cmdline()[child.cmdline().index("--role") + 1])


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def until_trained(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.parametrize("scheduler", ["local", "ray"])
def test_two_steps(scheduler: str, tmp_path: Path) -> None:
    status, text = ended(start(scheduler, tmp_path, "max_steps=2", "run_name=run", "sampling.strategy=difficulty"))
    run = tmp_path / "run"
    assert status == 0, text
    assert "AReaL" not in text  # its tables are its own
    first, second = rows(run)
    assert (first["step"], second["step"], second["policy_version"]) == (1, 2, 2)
    # Of the same policy, both workers know the same log-probs: the update reached the one that plays.
    assert first["logprob_gap"] == pytest.approx(1.0, abs=1e-4)
    assert second["staleness_max"] <= 2
    assert {row["episodes"] + row["infra_errors"] for row in rows(run, "eval.jsonl")} == {4}
    assert (run / "checkpoints" / "last" / "manifest.json").is_file()
    assert sum(episodes for _, episodes in read_state(run / "checkpoints" / "last").task_success.values()) > 4
    assert_episodes_are_recorded(run, first["episodes"] + second["episodes"])


def assert_episodes_are_recorded(run: Path, trained_on: int) -> None:
    """By the workers that played them."""
    recording = Recording(run)
    recording.refresh()
    training = [entry for _, entry in recording.episodes() if not entry.about["evaluation"]]
    assert sum(recording.step_of(entry) is not None for entry in training) >= trained_on
    assert len(recording.entries) - len(training) >= 4
    screens = [turn["screen"] for turn in recording.entries[0].place.read()["turns"]]
    assert all(recording.screen(0, screen).is_file() for screen in screens)


def test_a_dead_worker_ends_the_run_in_one_line_and_keeps_its_steps(tmp_path: Path) -> None:
    process = start("local", tmp_path, "max_steps=500", "eval.baseline=false", "eval.every_steps=0", "run_name=run")
    run = tmp_path / "run"
    until_trained(process, run)
    training, playing = workers(process)
    playing.kill()
    status, text = ended(process)
    assert status == 1
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "scheduler=local: " in line and "areal/logs" in line
    assert not training.is_running()
    state = json.loads((run / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert state["step"] == len(rows(run)) >= 1


def test_all_listen_on_this_machine_only_and_workers_do_not_outlive_a_killed_controller(tmp_path: Path) -> None:
    process = start("local", tmp_path, "max_steps=500", "eval.baseline=false", "run_name=run")
    until_trained(process, tmp_path / "run")
    left = workers(process)
    assert len(left) == 2
    sockets = [one for each in (psutil.Process(process.pid), *left) for one in each.net_connections("inet")]
    assert {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    process.send_signal(signal.SIGKILL)  # it stays a zombie until somebody asks for its status
    _, alive = psutil.wait_procs(left, timeout=60)
    assert alive == []
    process.wait()
