"""Presets from anywhere, and sweeps."""

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.refusals import refusal
from trainers.compare.options import read_arguments
from trainers.config import ConfigError, presets
from trainers.config.compose import CONF, compose_run, load_config
from trainers.config.presets import Presets, joined_options, presets_in
from trainers.config.sweeps import runs_of
from trainers.run.directory import create_run_directory

ROOT = Path(__file__).parents[1]
MINE = "# @package _global_\ndefaults:\n  - override /env: small\nmax_steps: 7\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with two presets, in a path that is not plain."""
    own = tmp_path / "jürgen's (own)"
    for file, text in {"experiment/mine.yaml": MINE, "env/small.yaml": "name: pocket\nargs: {scale: 2}\n"}.items():
        (own / file).parent.mkdir(parents=True)
        (own / file).write_text(text)
    return own


def test_presets_of_a_directory_build_on_each_other_and_on_ours(folder: Path) -> None:
    config = load_config([f"--config-dir={folder}", "experiment=mine", "model=qwen3_vl_4b"])
    assert (config.experiment, config.max_steps, config.env.args["scale"]) == ("mine", 7, 2)
    assert config.model.path == "Qwen/Qwen3-VL-4B-Instruct"
    assert "mine" in refusal(f"--config-dir={folder}", "experiment=mein")
    assert "mine" not in refusal("experiment=mine").partition("allowed")[2]


@pytest.mark.slow
def test_a_run_of_such_a_preset_is_resumed_without_the_directory(folder: Path, tmp_path: Path) -> None:
    found = compose_run([f"--config-dir={folder}", "experiment=mine", f"output_dir={tmp_path}", "run_name=former"])
    former = create_run_directory(found.config, presets=found.presets)
    for more in ([], ["backend=legacy"]):
        config = load_config([f"resume={former}", *more])
        assert (config.experiment, config.max_steps, config.env.args["scale"]) == ("mine", 7, 2)


def test_a_package_brings_presets_without_being_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder.parent / "their_package"
    (package / "presets").parent.mkdir()
    folder.rename(package / "presets")
    (package / "__init__.py").write_text("")
    (package / "presets" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(folder.parent)
    points = [SimpleNamespace(name="theirs", value="their_package.presets")]
    monkeypatch.setattr(presets, "entry_points", lambda **_: points)
    presets._installed.cache_clear()
    try:
        assert load_config(["experiment=mine"]).max_steps == 7
        points[0].value = "no_such_package_at_all"
        presets._installed.cache_clear()
        assert "no_such_package_at_all is no package" in refusal("experiment=mine")
    finally:
        monkeypatch.undo()
        presets._installed.cache_clear()


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("nowhere", "nowhere: no such directory"),
        ("empty", "empty: no presets in it; allowed: files such as experiment/mine.yaml"),
        ("taken", "taken: env/pocket.yaml: there is a preset of that name already"),
    ],
)
def test_a_directory_without_usable_presets_is_one_line(tmp_path: Path, directory: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "env").mkdir(parents=True)
    (tmp_path / "taken" / "env" / "pocket.yaml").write_text("name: pocket\n")
    assert words in refusal(f"--config-dir={tmp_path / directory}")


def test_the_option_is_written_as_one_word_or_two(folder: Path) -> None:
    assert joined_options(["a=1", "--config-dir", "x", "-m"]) == ["a=1", "--config-dir=x", "-m"]
    with pytest.raises(ConfigError, match="a directory is wanted"):
        joined_options(["a=1", "--config-dir"])
    words = [f"--config-dir={folder}", "backends=[legacy]", "experiment=mine"]
    options, for_training = read_arguments(words)
    assert (options.backends, for_training) == (("legacy",), [words[0], words[2]])
    assert isinstance(presets_in(CONF, [str(folder)]), Presets)


# Sweeps.


def test_a_sweep_is_a_run_for_every_combination_named_after_what_differs() -> None:
    words = ["experiment=quick", "seed=1,2", "--config-dir=x", "optim.learning_rate=1e-4,2e-4", "run_name=a"]
    runs = runs_of(words, "out", datetime(2026, 1, 2, 3, 4, 5))
    assert len(runs) == 4
    assert runs[0] == [
        "experiment=quick", "seed=1", "--config-dir=x", "optim.learning_rate=0.0001",
        "output_dir=out/sweep-20260102-030405", "run_name=seed=1+optim.learning_rate=0.0001",
    ]  # fmt: skip
    assert [run[-1] for run in runs[1:]] == [
        "run_name=seed=1+optim.learning_rate=0.0002",
        "run_name=seed=2+optim.learning_rate=0.0001",
        "run_name=seed=2+optim.learning_rate=0.0002",
    ]
    assert [load_config([word for word in run if word != "--config-dir=x"]).seed for run in runs] == [1, 1, 2, 2]


def test_texts_and_lists_with_commas_are_values_like_any_other() -> None:
    assert [run[0] for run in runs_of(["env.tasks=[a,b],[c]"], "o")] == ["env.tasks=[a,b]", "env.tasks=[c]"]
    assert [run[:2] for run in runs_of(["env.tasks=[a,b]", "seed=range(1,3)"], "o")] == [
        ["env.tasks=[a,b]", "seed=1"], ["env.tasks=[a,b]", "seed=2"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "-m: nothing to sweep"),
        ([], "-m: nothing to sweep"),
        (["run_name=a,b"], "run_name=a,b: not in a sweep"),
        (["resume=a,b"], "resume=a,b: not in a sweep"),
    ],
)
def test_what_is_no_sweep_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        runs_of(words, "outputs")


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_sweep_with_one_bad_value_starts_nothing(tmp_path: Path) -> None:
    done = train(tmp_path, "-m", "rollout.group_size=4,1", "experiment=quick")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: rollout.group_size=1: must be greater than or equal to 2")
    assert list(tmp_path.iterdir()) == []
    assert "one value only" in train(tmp_path, "seed=1,2").stderr


@pytest.mark.slow
def test_a_sweep_runs_and_ctrl_c_ends_the_run_that_goes_on_with_its_weights_saved(tmp_path: Path) -> None:
    keys = "experiment=quick backend=legacy rollout.groups_per_step=1 rollout.group_size=2 eval.baseline=false "
    keys += "eval.episodes=2 max_steps=1 threads=1"
    done = train(tmp_path, "-m", "seed=1,2", *keys.split())
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == ["seed=1", "seed=2"]
    assert all((path / "summary.json").is_file() for path in sweep.iterdir())
    assert f"2 of 2 runs are done: output_dir=outputs/{sweep.name}" in done.stdout

    command = [sys.executable, "-u", str(ROOT / "train.py"), "-m", "seed=3,4", *keys.split(), "max_steps=900"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait() == 130
    assert len(list((tmp_path / "outputs").glob("*/seed=3/checkpoints/last"))) == 1
    assert not list((tmp_path / "outputs").glob("*/seed=4"))
