"""wandb and trackio record on every backend, and a missing login is found before anything is loaded."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = (
    "experiment=quick",
    "max_steps=1",
    "eval.episodes=2",
    "eval.baseline=false",
    "rollout.groups_per_step=1",
    "rollout.group_size=2",
    "rollout.max_turns=2",
)
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from trainers.command.train import main
status = main(sys.argv[2:])
print("loaded" if "cua_agent.models.loaders" in sys.modules else "nothing loaded")
sys.exit(status)
"""


def train(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`train.py` with the arguments `words`, as somebody who is logged in nowhere."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    command = [sys.executable, "-c", _PROGRAM, str(ROOT), *words]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["legacy", "areal"])
@pytest.mark.parametrize(
    ("name", "variables", "hint"),
    [
        ("wandb", {}, "set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"),
        ("trackio", {"TRACKIO_SPACE_ID": "me/curves"}, "set HF_TOKEN or run `hf auth login`"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://127.0.0.1:1"}, "set TRACKIO_WRITE_TOKEN"),
    ],
)
def test_a_missing_login_is_status_2_in_one_line_before_anything_is_loaded(
    backend: str, name: str, variables: dict[str, str], hint: str, tmp_path: Path
) -> None:
    done = train(tmp_path, f"backend={backend}", f"logging.{name}=true", **variables)
    assert (done.returncode, done.stdout) == (2, "nothing loaded\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: logging.{name}=true")
    assert hint in line
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [("backend=legacy",), ("backend=areal", "phase=1"), ("backend=areal", "phase=3")])
def test_both_record_what_the_run_directory_holds_and_nothing_else(backend: tuple[str, ...], tmp_path: Path) -> None:
    done = train(
        tmp_path,
        *SHORT,
        *backend,
        "logging.wandb=true",
        "logging.trackio=true",
        "run_name=mine",
        WANDB_MODE="offline",
        TRACKIO_DIR=str(tmp_path / "trackio"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "outputs" / "mine" / "metrics.jsonl").read_text())
    keys = {f"train/{key}" for key, value in row.items() if value is not None and key != "step"}

    (offline,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = offline.read_bytes()
    for key in keys:
        assert key.encode() in content
    assert b"grpo_actor" not in content and b"ppo_actor" not in content  # AReaL's own statistics

    assert b"eval_seeds/episodes" in content
    (events,) = (tmp_path / "outputs" / "mine" / "tensorboard").iterdir()
    assert b"eval_seeds/episode_0" in events.read_bytes() and b"\x89PNG" in events.read_bytes()

    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = [json.loads(text) for (text,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert keys <= {key for entry in logged for key in entry}
    (table,) = [entry["eval_seeds/episodes"] for entry in logged if "eval_seeds/episodes" in entry]
    assert table["_type"] == "trackio.table"
    (reward,) = [entry["train/reward_mean"] for entry in logged if "train/reward_mean" in entry]
    assert reward == row["reward_mean"]
