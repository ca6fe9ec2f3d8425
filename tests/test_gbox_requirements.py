"""What env=gbox needs is asked for in one line before anything heavy is loaded, and the key is never written down."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cua_agent.__main__ import main as play_main
from cua_agent.envs.android.start import ANDROID_FAMILIES
from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.gbox.settings import api_key
from cua_agent.envs.gbox.world import GBoxWorld
from cua_agent.tasks import get_eval_tasks, get_training_tasks
from trainers.config import ConfigError, from_mapping
from trainers.config.compose import load_config
from trainers.rollouts.task_sampler import training_tasks
from trainers.run.directory import create_run_directory, named_after

ROOT = Path(__file__).parents[1]
KEY = "gbox-key-that-nobody-may-read"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GBOX_API_KEY", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["train"], ["cua_agent.__main__", "task=battery/w0"]], ids=["train", "play"])
def test_a_missing_key_is_one_line_before_the_model_is_loaded(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1]); "
        "status = importlib.import_module(sys.argv[2]).main([*sys.argv[3:], 'env=gbox']); "
        "print('cua_agent.models.loaders' in sys.modules); sys.exit(status)"
    )
    call = [sys.executable, "-c", program, str(ROOT), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: env=gbox needs a key: set the environment variable GBOX_API_KEY")


def test_a_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GBOX_API_KEY", KEY)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(WorldUnavailable, match=r"pip install 'cua-grpo\[gbox\]'"):
        load_config(["env=gbox"]).env.world.check()


def test_importing_the_settings_does_not_need_the_sdk() -> None:
    program = "import sys; import cua_agent.envs, trainers.config; print('gbox_sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("override", ["env.args.api_key=abc", "env.args={api_key:abc}", "env.args.api_key='abc'"])
def test_a_key_that_is_written_out_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError, match=r"oc.env") as caught:
        load_config(["env=gbox", override])
    assert "abc" not in str(caught.value)


def test_the_key_is_nowhere_in_the_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    config = load_config(["env=gbox", "env.args.api_key='${oc.env:MY_KEY}'", f"output_dir={tmp_path}", "run_name=r"])
    assert api_key(config.env.world).get_secret_value() == KEY
    assert KEY not in repr(config)
    assert KEY not in json.dumps(asdict(config))
    directory = create_run_directory(config)
    for file in directory.iterdir():
        assert KEY not in file.read_text()
    written = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    assert from_mapping(written) == config  # type: ignore[arg-type]


def test_boxes_carry_the_name_of_the_run_directory(tmp_path: Path) -> None:
    config = load_config(["env=gbox", f"output_dir={tmp_path}", "run_name=r"])
    assert named_after(config, create_run_directory(config)).env.args["run"] == "r"
    assert named_after(config, create_run_directory(config)).env.args["run"] == "r-2"
    mine = load_config(["env=gbox", "env.args.run=mine"])
    assert named_after(mine, tmp_path).env.args["run"] == "mine"
    assert named_after(mine, tmp_path).run_name == tmp_path.name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.tasks=[word,toggle]"], ["env.tasks='word'", "battery, brightness, timeout, toggle"]),
        (["env.args.box=linux"], ["box=linux with reset=android", "reset=fresh"]),
        (["env.args.max_age_s=3600"], ["max_age_s=3600", "below expires_in_s=3600"]),
        (["env.args.create_timeout_s=301"], ["env.args.create_timeout_s=301", "300"]),
        (["env.args.scale=0.1"], ["env.args.scale=0.1", "greater than 0.1"]),
        (["env.args.base_url=gbox.ai"], ["env.args.base_url=gbox.ai", "https?"]),
        (["env.args.reset=never"], ["env.args.reset=never", "'pocket', 'android' or 'fresh'"]),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        training_tasks(load_config(["env=gbox", *overrides]).env)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and "{" not in message


def test_the_local_preset_plays_the_families_of_pocket() -> None:
    local, pocket = load_config(["env=gbox_local"]).env, load_config([]).env
    assert (local.name, local.args["reset"], local.tasks) == ("gbox", "pocket", pocket.tasks)


def test_the_tasks_are_those_of_the_phone() -> None:
    phone = GBoxWorld(reset="fresh")
    assert phone.training_tasks() == get_training_tasks("pocket")
    assert phone.eval_tasks("templates") == get_eval_tasks("pocket", "templates")


def test_a_real_phone_offers_the_tasks_that_it_can_be_set_up_for() -> None:
    for tasks in (get_training_tasks("gbox"), get_eval_tasks("gbox", "templates")):
        assert {task.category for task in tasks} == set(ANDROID_FAMILIES)


@pytest.mark.slow
def test_playing_one_episode_reports_a_service_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("GBOX_API_KEY", KEY)
    monkeypatch.setattr("cua_agent.envs.gbox.calls._BACK_OFF", lambda _: 0.0)
    options = ["env=gbox", "task=battery/w0", "base_url=http://127.0.0.1:1/api/v1", f"out={tmp_path / 't.html'}"]
    assert play_main(options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no GBox answers" in error and KEY not in error
