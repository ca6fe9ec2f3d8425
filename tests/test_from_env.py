import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainers.config import ConfigError, TrainConfig, compose
from trainers.config.from_env import convert, main, read_env, render
from trainers.config.old_variables import FIXED, OBSOLETE, STAYS, VARIABLES
from trainers.config.validation import fields_of

FULL = """\
# The old trainer's file, as it was used.
MODEL_NAME=unsloth/Qwen3-VL-30B-A3B-Instruct
export LEARNING_RATE=2e-5
BETA=0.02  # KL penalty coefficient
CLIP_EPSILON="0.3"
BATCH_SIZE='6'
NUM_ROLLOUTS=3#inline
MAX_TURNS=12
ROLLOUT_CONCURRENCY=5
LORA_R=8
LORA_ALPHA=64
LORA_DROPOUT=0.1
LORA_TARGET_MODULES=["q_proj", "v_proj"]
EVAL_STEPS=7
SAVE_STEPS=9
SAVE_TOTAL_LIMIT=3
TARGET_ACCURACY=0.9
PATIENCE=2
MIN_GROUP_STD=0.01
MAX_SEQ_LENGTH=8192
LOAD_IN_4BIT=no
MAX_GRAD_NORM=0.5
WARMUP_STEPS=4
MAX_STEPS=50
MAX_TOKENS=512
TEMPERATURE=0.8
CUA_CONTEXT_WINDOW=4
OUTPUT_DIR=outputs/old
SEED=7
ENABLE_WANDB=false
WANDB_PROJECT=phones
"""
EXPECTED = {
    "backend": "legacy",
    "model.path": "unsloth/Qwen3-VL-30B-A3B-Instruct",
    "model.max_length": 8192,
    "loader.name": "unsloth",
    "loader.load_in_4bit": False,
    "optim.learning_rate": 2e-5,
    "optim.warmup_steps": 4,
    "optim.max_grad_norm": 0.5,
    "loss.kl_coefficient": 0.02,
    "loss.clip_epsilon": 0.3,
    "rollout.groups_per_step": 6,
    "rollout.group_size": 3,
    "rollout.max_turns": 12,
    "rollout.concurrency": 5,
    "rollout.max_new_tokens": 512,
    "rollout.temperature": 0.8,
    "rollout.last_k": 4,
    "lora.enabled": True,
    "lora.r": 8,
    "lora.alpha": 64,
    "lora.dropout": 0.1,
    "lora.target_modules": r".*\.layers\..*\.(q_proj|v_proj)",
    "eval.every_steps": 7,
    "eval.target_success": 0.9,
    "eval.patience": 2,
    "checkpoint.every_steps": 9,
    "checkpoint.keep": 3,
    "advantage.min_group_std": 0.01,
    "max_steps": 50,
    "output_dir": "outputs/old",
    "seed": 7,
    "logging.wandb": False,
    "logging.project": "phones",
}
SECRET = "gbox_0123456789abcdef"


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of experiments of a copy of conf/, which `load_config` then reads."""
    copy = tmp_path / "conf"
    shutil.copytree(compose.CONF, copy)
    monkeypatch.setattr(compose, "CONF", copy)
    return copy / "experiment"


def composed(text: str, folder: Path) -> TrainConfig:
    (folder / "mine.yaml").write_text(render(convert(read_env(text)[0]), "old.env"), encoding="utf-8")
    return compose.load_config(["experiment=mine"])


def value_of(config: object, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def notes_of(text: str) -> list[str]:
    values, notes = read_env(text)
    return [*notes, *convert(values).notes]


def test_every_variable_becomes_its_key(experiments: Path) -> None:
    config = composed(FULL, experiments)
    assert {key: value_of(config, key) for key in EXPECTED} == EXPECTED
    assert config.experiment == "mine"


def test_unset_and_empty_variables_are_the_old_defaults(experiments: Path) -> None:
    config = composed("BATCH_SIZE=\nSEED=  # none\n", experiments)
    assert (config.rollout.groups_per_step, config.rollout.group_size, config.seed) == (4, 4, 42)
    assert (config.optim.learning_rate, config.loss.kl_coefficient, config.lora.enabled) == (1e-5, 0.01, True)
    assert config.model.path == "unsloth/Qwen3-VL-32B-Instruct"
    assert (config.rollout.context, config.model.grounding, config.optim.betas) == ("last_k", "target", (0.9, 0.999))


def test_every_line_names_its_old_variable() -> None:
    preset = render(convert({"SEED": "3"}), "old.env")
    assert "seed: 3  # SEED\n" in preset
    assert "  groups_per_step: 4  # BATCH_SIZE's default\n" in preset


def test_the_table_is_consistent() -> None:
    keys = {key for key, _ in fields_of(TrainConfig)}
    assert {variable.key for variable in VARIABLES} | set(FIXED) <= keys
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    assert not set(names) & (set(OBSOLETE) | set(STAYS))


def test_what_has_no_key_is_listed_with_a_reason() -> None:
    notes = notes_of(
        "TOP_P=0.9\nLORA_UPDATE_STEPS=10\nHF_TOKEN=x\nLERNING_RATE=1\nzzz=1\nno assignment\nSEED=1\nSEED=2\n"
    )
    expected = ["line 6: not NAME=value", "SEED: set more than once", "TOP_P: not converted; sampling"]
    expected += ["LORA_UPDATE_STEPS: not converted; every update", "HF_TOKEN: leave it in the environment"]
    expected += ["LERNING_RATE: not converted; no variable of the old trainer, did you mean LEARNING_RATE?"]
    expected += ["zzz: not converted; no variable of the old trainer"]
    assert len(notes) == len(expected)
    assert [note for note, start in zip(notes, expected, strict=True) if not note.startswith(start)] == []


def test_a_variable_that_now_does_what_it_says_is_remarked_on() -> None:
    assert any(note.startswith("BETA: the old trainer's KL term was always 0") for note in notes_of("BETA=0.1"))
    assert notes_of("LEARNING_RATE=1e-5") == []


def test_two_variables_of_one_key_do_not_fight(experiments: Path) -> None:
    assert composed("CUA_MAX_TURNS=9", experiments).rollout.max_turns == 9
    assert composed("CUA_MAX_TURNS=9\nMAX_TURNS=8", experiments).rollout.max_turns == 8
    assert "CUA_MAX_TURNS: not converted; MAX_TURNS sets rollout.max_turns" in notes_of("CUA_MAX_TURNS=9\nMAX_TURNS=8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("LEARNING_RATE=fast", ["LEARNING_RATE=fast", "optim.learning_rate", "a number"]),
        ("LEARNING_RATE=-1e-5", ["LEARNING_RATE=-1e-5", "optim.learning_rate", "greater than 0"]),
        ("BATCH_SIZE=2.5", ["BATCH_SIZE=2.5", "rollout.groups_per_step", "an integer"]),
        ("NUM_ROLLOUTS=1", ["NUM_ROLLOUTS=1", "rollout.group_size", "greater than or equal to 2"]),
        ("ENABLE_WANDB=maybe", ["ENABLE_WANDB=maybe", "logging.wandb", "true, 1, yes, on, false, 0, no, off"]),
        ("TARGET_ACCURACY=80", ["TARGET_ACCURACY=80", "eval.target_success", "less than or equal to 1"]),
        ("WANDB_PROJECT=a b", ["WANDB_PROJECT=a b", "logging.project", "match"]),
        ("LORA_TARGET_MODULES=q_proj|v", ["LORA_TARGET_MODULES=q_proj|v", "module names"]),
        ("LORA_TARGET_MODULES=[q_proj]", ["LORA_TARGET_MODULES=[q_proj]", "not a list"]),
        ("SEED=$OTHER", ["SEED=${oc.env:OTHER}", "an integer"]),
    ],
)
def test_an_illegal_value_is_one_line_that_names_variable_value_and_what_is_allowed(
    line: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(read_env(line)[0])
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("q_proj,v_proj", r"\.(q_proj|v_proj)"),
        ("'q_proj v_proj,'", r"\.(q_proj|v_proj)"),
        ("all-linear", r"\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"),
    ],
)
def test_target_modules_may_be_written_in_several_ways(written: str, pattern: str, experiments: Path) -> None:
    assert composed(f"LORA_TARGET_MODULES={written}", experiments).lora.target_modules.endswith(pattern)


def test_references_to_other_variables_hold(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "/data")
    assert composed("ROOT=/here\nOUTPUT_DIR=$ROOT/out", experiments).output_dir == "/here/out"
    assert composed("OUTPUT_DIR=${ELSEWHERE}/out", experiments).output_dir == "/data/out"
    assert composed("OUTPUT_DIR=${NOT_SET:-spare}/out", experiments).output_dir == "spare/out"


def test_secrets_are_never_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = tmp_path / "old.env"
    env.write_text(
        f"GBOX_API_KEY={SECRET}\nWANDB_API_KEY={SECRET}\nOUTPUT_DIR=outputs/${{GBOX_API_KEY}}\nMY_PASSWORD=hunter2xx\n"
        f"MODEL_NAME=org/{SECRET}\nWANDB_PROJECT=hunter2xx\n",
        encoding="utf-8",
    )
    assert main([str(env)]) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "hunter2xx" not in printed.out + printed.err
    assert 'output_dir: "outputs/${oc.env:GBOX_API_KEY}"' in printed.out
    assert 'path: "${oc.env:MODEL_NAME}"' in printed.out


def test_the_command_prints_a_preset_and_reports_on_stderr(tmp_path: Path) -> None:
    env = tmp_path / "old.env"
    env.write_text("SEED=5\nTOP_P=0.9\n", encoding="utf-8")
    command = [sys.executable, "-m", "trainers.config.from_env", str(env)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("# @package _global_\n# Made from old.env")
    assert "seed: 5  # SEED" in done.stdout
    assert done.stderr.startswith("TOP_P: not converted")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"SEED=x"])
def test_a_file_that_cannot_be_converted_is_refused_in_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = tmp_path / "old.env"
    if content is not None:
        env.write_bytes(content)
    assert main([str(env)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([variable.name for variable in VARIABLES]), st.text(max_size=12), max_size=3))
def test_any_value_is_converted_or_refused_in_one_line(values: dict[str, str]) -> None:
    try:
        preset = render(convert(values), "old.env")
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert preset.startswith("# @package _global_\n")
    tree = OmegaConf.to_container(OmegaConf.create(preset))
    assert isinstance(tree, dict)
    assert next(iter(tree)) == "defaults"
