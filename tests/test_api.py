"""Training from Python: the example of docs/api.md, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainers
from cua_agent.__main__ import OptionError
from trainers import load_config, make_trainer, play
from trainers.config import ConfigError

ROOT = Path(__file__).parents[1]


def test_importing_it_loads_nothing_heavy() -> None:
    program = "import sys; from trainers import load_config; load_config([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute make_coffee"):
        _ = trainers.make_coffee


def test_what_cannot_be_run_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^max_steps=0: "):
        load_config(["max_steps=0"])
    config = load_config([f"output_dir={tmp_path}", "env=miniwob", "env.args.browser_path=/no/such/browser"])
    with pytest.raises(ConfigError, match="/no/such/browser"):
        make_trainer(config)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match=r"task='nothing' is not a task of env=pocket"):
        play("task=nothing")


@pytest.mark.slow
def test_the_example_trains_plays_and_looks_at_an_episode(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{block[1]}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 steps, success [\d.]+ -> [\d.]+$", done.stdout, re.MULTILINE)
    assert (tmp_path / "outputs" / "api" / "summary.json").is_file()
    assert "<html" in (tmp_path / "episode.html").read_text(encoding="utf-8")
