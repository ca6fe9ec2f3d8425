import contextlib
import json
import shlex
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainers.config import ConfigError, LoggingConfig, TrainConfig, from_mapping
from trainers.config.compose import load_config
from trainers.config.masking import MASK, mask_secrets
from trainers.run.commands import resume_command
from trainers.run.directory import create_run_directory

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 1, 2, 3, 4, 5)


def test_the_name_tells_time_backend_experiment_and_seed(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), experiment="quick", seed=7)
    assert create_run_directory(config, NOW).name == "20260102-030405-areal-quick-seed7"


@pytest.mark.parametrize("run_name", [None, "mine"])
def test_a_rerun_gets_a_directory_of_its_own(tmp_path: Path, run_name: str | None) -> None:
    config = TrainConfig(output_dir=str(tmp_path / "new" / "parent"), run_name=run_name)
    first = create_run_directory(config, NOW)
    (first / "metrics.jsonl").write_text("kept")
    second, third = create_run_directory(config, NOW), create_run_directory(config, NOW)
    assert (second.name, third.name) == (f"{first.name}-2", f"{first.name}-3")
    assert (first / "metrics.jsonl").read_text() == "kept"


def test_config_yaml_holds_the_whole_configuration(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), max_minutes=2.5)
    written = OmegaConf.to_container(OmegaConf.load(create_run_directory(config, NOW) / "config.yaml"))
    assert isinstance(written, dict)
    assert from_mapping(written) == config  # type: ignore[arg-type]


def test_run_json_tells_versions_and_start(tmp_path: Path) -> None:
    directory = create_run_directory(TrainConfig(output_dir=str(tmp_path)), NOW)
    about = json.loads((directory / "run.json").read_text())
    assert about["started"] == "2026-01-02T03:04:05"
    assert about["packages"]["torch"].startswith("2.")
    assert {"python", "git_commit", "cpus", "command", "resumed_from"} <= set(about)


def test_a_secret_of_the_environment_does_not_reach_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef0123456789")
    monkeypatch.setattr("sys.argv", ["train.py", "logging.project=abcdef0123456789"])
    config = TrainConfig(output_dir=str(tmp_path), logging=LoggingConfig(project="abcdef0123456789"))
    directory = create_run_directory(config, NOW)
    for file in directory.iterdir():
        assert "abcdef0123456789" not in file.read_text()
    assert MASK in (directory / "config.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["api_key", "GBOX_API_KEY", "password", "hf_token", "client_secret", "credentials", "key"]
)
def test_texts_below_a_secret_name_are_masked(name: str) -> None:
    masked = mask_secrets({name: "x", "inner": [{name: ["y", 3]}], "nothing": {name: None}}, {})
    assert masked == {name: MASK, "inner": [{name: [MASK, 3]}], "nothing": {name: None}}


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("sk-proj-abcdefghijkl0123456789", MASK),
        ("use hf_abcdefghijklmnop please", f"use {MASK} please"),
        ("ghp_0123456789abcdefghij", MASK),
        ("AKIAABCDEFGHIJKLMNOP", MASK),
        ("https://me:pass@host/model", f"https://{MASK}@host/model"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
    ],
)
def test_values_shaped_like_secrets_are_masked(value: str, masked: str) -> None:
    assert mask_secrets({"note": value}, {}) == {"note": masked}


def test_ordinary_values_stay() -> None:
    tree = {
        "max_new_tokens": 48,
        "normalisation": "token_mean",
        "keys": 3,
        "path": "Qwen/Qwen3-VL-4B-Instruct",
        "run_name": "20260102-030405-areal-default-seed0",
        "tasks": ["settings"],
        "project": "cua-grpo",
    }
    assert mask_secrets(tree, {"SHORT_KEY": "cua", "HOME": "cua-grpo"}) == tree


def test_an_output_directory_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output_dir=.*file.*$"):
        create_run_directory(TrainConfig(output_dir=str(tmp_path / "file")), NOW)
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="in the way"):
        create_run_directory(TrainConfig(output_dir=str(tmp_path), run_name="mine"), NOW)


def test_the_command_to_go_on_needs_nothing_that_the_directory_holds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "env.args.api_key=${oc.env:BOX_TOKEN}"
    started = ["experiment=pocket_lora", "env.tasks=[a,b]", "resume=old", "run_name=mine", secret]
    assert resume_command(started, tmp_path / "outputs" / "mine", max_steps=10) == (
        f"python {ROOT}/train.py resume=outputs/mine max_steps=10 'env.args.api_key=${{oc.env:BOX_TOKEN}}'"
    )
    monkeypatch.chdir(ROOT)
    assert resume_command([], Path("outputs/mine")) == "python train.py resume=outputs/mine"


ANY_NAME = st.text(
    st.sampled_from("\\'\"${}a= ,(~ü\n") | st.characters(exclude_characters="\0/", exclude_categories=["Cs"]),
    min_size=1,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 250)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(ANY_NAME)
@example("auto")
@example("~root")
@example("Null")
def test_the_printed_command_leads_back_whatever_the_path(name: str) -> None:
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        directory = Path(folder) / name
        directory.mkdir()
        for place in (directory, Path(name)):
            *_, word = shlex.split(resume_command([], place))
            resume = load_config([word]).resume
            assert resume is not None
            assert Path(resume).expanduser().samefile(directory)
