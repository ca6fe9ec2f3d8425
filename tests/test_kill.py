"""A run that is killed again and again ends as if nothing had happened: the benchmark, in short."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cua_agent.envs.miniwob.browser import DEFAULT_BROWSER

ROOT = Path(__file__).parents[1]
no_browser = pytest.mark.skipif(shutil.which(DEFAULT_BROWSER) is None, reason=f"no {DEFAULT_BROWSER}: `make browser`")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("surroundings", "kills", "steps"),
    [
        pytest.param("nothing", 2, 4),
        pytest.param("boxes", 1, 2),
        pytest.param("pages", 1, 2, marks=no_browser),
        pytest.param("adapters", 1, 2),
    ],
)
def test_a_run_that_is_killed_again_and_again_has_every_row_once_and_leaves_nothing(
    tmp_path: Path, surroundings: str, kills: int, steps: int
) -> None:
    uninterrupted = 2 if surroundings == "nothing" else 0  # which it then equals, row by row
    quick = ["eval.episodes=2", "--kills", str(kills), "--steps", str(steps), "--uninterrupted", str(uninterrupted)]
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), "legacy", *quick, "--with", surroundings]
    done = subprocess.run(
        [*command, "--work", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f'"steps": {steps}' in done.stdout
