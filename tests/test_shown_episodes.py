"""The table of episodes and the images that trackers get, with the real packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.watch_rig import PLANTED, record_run
from trainers.run.shown_episodes import COLUMNS, EvaluationReader

PROGRAM = """
import sys
from pathlib import Path
from trainers.config import LoggingConfig
from trainers.run.metrics import MetricsWriter, open_trackers
from trainers.run.shown_episodes import EvaluationReader
run, told = Path(sys.argv[1]), []
trackers = open_trackers(LoggingConfig(wandb=True, trackio=True), run, {})
writer = MetricsWriter(run, trackers, told.append)
writer.episodes(EvaluationReader(run).newest(0, 1), "seeds", 0)
writer.close()
assert told == [], told
"""


def test_the_newest_evaluation_is_shown_once_failures_first(tmp_path: Path) -> None:
    reader = EvaluationReader(record_run(tmp_path / "run", goal=PLANTED))
    (failed,) = reader.newest(0, 1)
    about = dict(zip(COLUMNS, failed.cells, strict=True))
    assert (about["outcome"], about["goal"], about["turns"]) == ("false_claim", PLANTED, 1.0)
    assert failed.screen is not None and failed.screen.size == (64, 112)
    assert reader.newest(0, 0) == []


def test_trackers_get_a_table_with_images(tmp_path: Path) -> None:
    run = record_run(tmp_path / "run", goal="Tap it.")
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", PROGRAM, str(run)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/**/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == [*COLUMNS, "last screen"] and content["data"][0][2] == "Tap it."
    assert content["data"][0][-1] == "Image"  # which is in the run's artifact
    staged = (tmp_path / ".local" / "share" / "wandb" / "artifacts" / "staging").iterdir()
    assert any(file.read_bytes().startswith(b"\x89PNG") for file in staged)
    assert list((tmp_path / "trackio").rglob("*.png"))
    (events,) = (run / "tensorboard").iterdir()
    assert b"eval_seeds/episode_0" in events.read_bytes() and b"\x89PNG" in events.read_bytes()
