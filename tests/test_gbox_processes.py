"""Training on a local GBox as a person starts it: real processes, faults, Ctrl-C and SIGKILL."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

SHORT = [
    "env=gbox_local",
    "experiment=quick",
    "run_name=r",
    "max_steps=1",
    "threads=1",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "rollout.concurrency=4",
    "eval.baseline=false",
    "eval.episodes=4",
    "logging.tensorboard=false",
]
AWAY_S = 10.0
"""More than what a call waits in the test below, as a minute is more than what it waits by default."""
IMPATIENT = [
    "env.args.call_timeout_s=3",
    "env.args.command_timeout_s=2",
    "env.args.create_timeout_s=5",
    "rollout.infra_retries=8",
]


@dataclass(frozen=True)
class Server:
    """A local GBox in its own process."""

    origin: str
    process: subprocess.Popen[str]

    def ledger(self) -> dict[str, Any]:
        with urlopen(f"{self.origin}/ledger") as response:
            report: dict[str, Any] = json.load(response)
        return report

    @property
    def running(self) -> list[str]:
        left: list[str] = self.ledger()["summary"]["running"]
        return left


@contextmanager
def local_gbox(*options: str, port: int = 0) -> Iterator[Server]:
    command = [sys.executable, "-m", "cua_agent.envs.local_gbox", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        origin = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert origin is not None
        yield Server(origin[0], process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def training(
    server: Server, directory: Path, *overrides: str, log: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    arguments = [*SHORT, f"env.args.base_url={server.origin}/api/v1", f"output_dir={directory}", *overrides]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=ROOT,
        env={**os.environ, "GBOX_API_KEY": "local"},
        stdout=log,
        stderr=log,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def acted_on(server: Server) -> bool:
    """Boxes are in the middle of episodes."""
    return len(server.running) >= 2 and server.ledger()["summary"]["executed"] >= 3


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_ctrl_c_leaves_no_box(backend: str, tmp_path: Path) -> None:
    with local_gbox() as server, training(server, tmp_path, f"backend={backend}", "max_steps=50") as process:
        wait_until(lambda: acted_on(server), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert server.running == []


@contextmanager
def away(server: Server, kind: str) -> Iterator[Server]:
    """Nobody answers at the server's address for a while: the server hangs, or is killed and started anew without its
    boxes."""
    if kind == "hangs":
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_S)
        server.process.send_signal(signal.SIGCONT)
        yield server
    else:
        server.process.kill()
        time.sleep(AWAY_S)
        with local_gbox(port=int(server.origin.rpartition(":")[2])) as anew:
            yield anew


@pytest.mark.parametrize(("backend", "kind"), [("legacy", "dies"), ("areal", "hangs")])
def test_a_service_that_is_away_for_a_while_costs_episodes_and_no_step(backend: str, kind: str, tmp_path: Path) -> None:
    patience = ["env.args.call_timeout_s=2", "env.args.attempts=2", "max_steps=2"]
    log = (tmp_path / "log").open("w+")
    with local_gbox() as server, training(server, tmp_path, f"backend={backend}", *patience, log=log) as process:
        wait_until(lambda: acted_on(server), process)
        with away(server, kind) as back:
            assert process.wait(500) == 0, (tmp_path / "log").read_text()
            summary = back.ledger()["summary"]
    said = (tmp_path / "log").read_text()
    assert (summary["running"], summary["sent_twice"]) == ([], [])
    assert summary["executed"] > 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert " is lost: " in said and "Traceback" not in said


def test_ctrl_c_while_boxes_are_being_made_leaves_none(tmp_path: Path) -> None:
    slow = ("--latency", "constant", "--create-s", "4", "--action-s", "0.01")
    with local_gbox(*slow) as server, training(server, tmp_path, "backend=legacy") as process:
        wait_until(lambda: server.running, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert server.running == []
        assert len(server.ledger()["boxes"]) == 4


def test_what_a_killed_run_leaves_the_reaper_ends(tmp_path: Path) -> None:
    with local_gbox() as server, training(server, tmp_path, "backend=legacy", "max_steps=50") as process:
        wait_until(lambda: acted_on(server), process)
        process.kill()
        process.wait(30)
        assert server.running
        command = [sys.executable, "-m", "cua_agent.envs.gbox", "reap", "--run", "r"]
        environment = {**os.environ, "GBOX_API_KEY": "local", "GBOX_CLIENT_BASE_URL": f"{server.origin}/api/v1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert server.running == []


def test_a_run_at_a_fault_rate_of_20_per_cent_finishes(tmp_path: Path) -> None:
    faults = ("--fault-rate", "0.2", "--seed", "1", "--hang-s", "6", "--slow-create-s", "6", "--retry-after-s", "0")
    with local_gbox(*faults) as server, training(server, tmp_path, "backend=legacy", *IMPATIENT) as process:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        summary = server.ledger()["summary"]
    assert (summary["running"], summary["sent_twice"]) == ([], [])
    assert sum(summary["faults"].values()) > 20
    (row,) = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert row["episodes_infra_error"] > 0
    assert "outcome/infra_error" not in row
    assert row["episodes"] <= 8
