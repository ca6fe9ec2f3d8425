"""A run that is killed again and again ends as if nothing had happened: the benchmark, in short."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_has_every_row_once_and_leaves_nothing(tmp_path: Path) -> None:
    quick = ["legacy", "eval.episodes=2", "--kills", "3", "--steps", "8", "--uninterrupted", "0"]
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), *quick, "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert '"steps": 8' in done.stdout
