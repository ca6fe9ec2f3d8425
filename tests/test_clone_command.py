"""`python -m trainers.clone`: what it refuses, and that what comes out is a model that training starts from."""

import json
import shlex
from pathlib import Path

import pytest

from cua_agent.agent import AgentConfig
from cua_agent.models.loaders import load_policy
from trainers.api import make_trainer
from trainers.clone.__main__ import main
from trainers.clone.recorded import recorded_examples
from trainers.clone.training import next_command
from trainers.config.compose import choices, load_config
from trainers.rollouts.trajectory_store import load_batch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["batch=0"], "batch=0: must be greater than or equal to 1"),
        (["out=taken"], "out=taken: is there already; allowed: a new directory"),
        (["source=taken"], "source=taken: allowed: oracle, or a run directory of train.py"),
        (["source=[oracle,outputs/run]"], "the oracle plays alone"),
        (["env=miniwob", "env.tasks=[]"], "source=oracle with env=miniwob: the expert plays env=pocket"),
        (["fresh=true", "lora.enabled=true"], "random weights are trained whole"),
        (["resume=auto"], "resume=auto: a clone begins with a model"),
        (["model.path=nowhere"], "nowhere: no such directory"),
        (["mistakse=0.1"], "mistakse=0.1: unknown key"),
        (["--quick"], "--quick: unknown option"),
    ],
)
def test_what_cannot_be_cloned_is_refused_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert {path.name for path in tmp_path.iterdir()} <= {"taken", "outputs"}


def test_the_next_command_keeps_what_the_model_is_spoken_to_with() -> None:
    overrides = ["model=qwen3_vl_4b", "model.path=./base", "loader.device=cuda"]
    assert next_command(["python", "train.py"], "out", overrides, choices("model")) == [
        *("python", "train.py", "model=qwen3_vl_4b", "loader.device=cuda", "model.path=out")
    ]
    assert next_command([], "out", ["model=./base"], choices("model")) == ["model.path=out"]


@pytest.mark.slow
def test_a_fresh_model_learns_to_give_positions_and_training_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spoken = ["model.grounding=coordinates", "env.tasks=[battery]", "eval.episodes=4"]
    short = ["steps=40", "batch=6", "workers=0", "warmup=4"]
    assert main(["fresh=true", "out=clone", *short, *spoken]) == 0
    words = capsys.readouterr().out
    losses = [float(line.split()[3]) for line in words.splitlines() if line.startswith("step ")]
    assert losses[-1] < 0.6 * losses[0]
    command = shlex.split(words.splitlines()[-1])
    assert command[0] == "python" and command[1].endswith("train.py")
    assert command[2:] == [*spoken, "model.path=clone"]
    about = json.loads(Path("clone/clone.json").read_text())
    assert (about["steps"], about["examples"], about["options"]["fresh"]) == (40, 240, True)
    assert about["success"]["all"]["success"]["starts"] == 4
    config = load_config(["backend=legacy", *spoken, "model.path=clone", "max_steps=1", "rollout.groups_per_step=1"])
    trainer = make_trainer(config)
    try:
        assert trainer.train().steps == 1
    finally:
        trainer.close()


@pytest.mark.slow
def test_recorded_successes_are_the_rows_that_were_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["max_steps=1", "eval.episodes=4", "eval.every_steps=0", "rollout.groups_per_step=3", "run_name=run"]
    trainer = make_trainer(load_config(["backend=legacy", *keys]))
    try:
        trainer.train()
    finally:
        trainer.close()
    policy = load_policy("tiny")
    (file,) = Path("outputs/run/trajectories").iterdir()
    trained = {tuple(row.input_ids.tolist()): row for row in load_batch(file).trajectories if row.success}
    assert trained
    found = {
        tuple(each.input_ids.tolist()): each for each in recorded_examples(["outputs/run"], policy, AgentConfig(), ())
    }
    for ids, row in trained.items():
        example = found[ids]
        assert all((ours == theirs).all() for ours, theirs in zip(example.images, row.images, strict=True))
        assert not (example.labels * (1 - row.loss_mask)).any()
        assert example.labels.sum() == row.loss_mask.sum() or any(turn.action is None for turn in row.turns)
    adapter = ["lora.enabled=true", "lora.r=4", "out=again", "steps=2", "batch=4", "workers=0", "eval.episodes=2"]
    assert main(["source=outputs/run", *adapter]) == 0
    assert load_policy("again").model.active_peft_config.r == 4  # type: ignore[union-attr]
    assert main(["source=outputs/run", "out=none", "env.tasks=[flying]"]) == 2
    assert "env.tasks='flying' is not a category" in capsys.readouterr().err
