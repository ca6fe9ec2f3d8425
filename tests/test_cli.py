import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_random

from cua_agent.agent import ContextTooShort
from trainers.command import train
from trainers.config import ConfigError, TrainConfig
from trainers.protocol import TrainResult
from trainers.run.checkpoint_files import read_state
from trainers.run.files import read_rows
from trainers.run.lineage import lineage_of, training_rows
from trainers.run.resuming import find_checkpoint

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, str(ROOT / "train.py")]
RESULT = TrainResult(
    steps=2, stop_reason="max_steps", eval_success_start=0.4, eval_success_end=0.9, eval_success_best=0.95, wall_s=90.0,
    rollout_s=50.0, train_s=30.0, env_utilisation=0.8, box_minutes=1.5, staleness_max=0,
)  # fmt: skip


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *arguments], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=300
    )


class ScriptedTrainer:
    """Stands for a backend: `train` does what the test says."""

    def __init__(self, behaviour) -> None:
        self.behaviour = behaviour
        self.closed = 0

    def train(self) -> TrainResult:
        return self.behaviour()

    def close(self) -> None:
        self.closed += 1


def run_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behaviour) -> tuple[int, ScriptedTrainer, Path]:
    """Exit status of a run in this process with a scripted backend, that backend, and the run directory."""
    trainer = ScriptedTrainer(behaviour)
    monkeypatch.setattr("trainers.api.build_trainer", lambda *_: trainer)
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    status = train.main([f"output_dir={tmp_path}", "run_name=run"])
    return status, trainer, tmp_path / "run"


def raising(error: BaseException):
    def behaviour() -> TrainResult:
        raise error

    return behaviour


def test_help_is_quick_and_lists_presets_keys_and_defaults(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because the wall clock of a busy machine says nothing about the command.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("pocket_lora", "miniwob", "rollout.group_size", "[8]", "optim.learning_rate", "Exit status"):
        assert text in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


@pytest.mark.parametrize(
    "arguments",
    [
        ["rollout.grup_size=4"],
        ["rollout.group_size=1"],
        ["backend=nothing"],
        ["env=gbox"],
        ["model=/no/such/model"],
        ["resume=/no/such/run"],
        ["env.tasks=word"],
        ["max_steps"],
        ["max_steps=[1"],
        ["--verbose"],
        ["output_dir=/dev/null/outputs"],
    ],
)
def test_a_bad_configuration_is_one_line_and_status_2(arguments: list[str], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    assert train.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 300
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_architecture_is_one_line_and_status_2(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert train.main([f"model={tmp_path}", f"output_dir={tmp_path / 'outputs'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: model.path='{tmp_path}' is a 'gpt2' model; allowed: qwen2_vl, ")
    assert error.count("\n") == 1
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_a_row_that_holds_no_turn_is_refused_before_weights_are_loaded(
    backend: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    base = tiny_random.build(tmp_path / "base")
    capsys.readouterr()  # transformers' progress
    (base / "model.safetensors").unlink()
    arguments = [f"model={base}", "model.max_length=100", f"backend={backend}", f"output_dir={tmp_path / 'outputs'}"]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.max_length=100: a first turn takes more than ")
    assert error.count("\n") == 1
    assert not list((tmp_path / "outputs").iterdir())


def test_a_row_that_turns_out_to_hold_no_turn_names_the_key(monkeypatch, tmp_path, capsys) -> None:
    status, _, directory = run_with(
        monkeypatch, tmp_path, raising(ContextTooShort("max_length=170 cannot hold one turn"))
    )
    assert status == 2
    assert capsys.readouterr().err.startswith("error: model.max_length=170 cannot hold one turn; allowed: more")
    assert not directory.exists()


def test_what_could_not_be_saved_is_refused_before_training(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    base = tiny_random.build(tmp_path / "base")
    capsys.readouterr()  # transformers' progress
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    arguments = [f"model={base}", f"output_dir={tmp_path / 'outputs'}", "backend=legacy"]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: model.path='{base}': its generation_config.json cannot be saved")
    assert error.count("\n") == 1
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.slow
def test_the_process_itself_exits_with_that_status_and_line(tmp_path: Path) -> None:
    done = command("backend=nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: backend=nothing: no such backend; allowed: areal, legacy\n"


@pytest.mark.slow
def test_the_whole_traceback_on_demand(tmp_path: Path) -> None:
    done = command("max_steps=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: max_steps=0")


@pytest.mark.slow
def test_config_prints_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    done = command("--config", "experiment=quick", "seed=3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "experiment: quick" in done.stdout
    assert "seed: 3" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("cua-train")
    done = subprocess.run([script, "seed=-1"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: seed=-1")


@pytest.mark.slow
def test_a_finished_run_says_where_its_results_are(monkeypatch, tmp_path, capsys) -> None:
    status, trainer, directory = run_with(monkeypatch, tmp_path, lambda: RESULT)
    assert (status, trainer.closed) == (0, 1)
    words = capsys.readouterr().out
    assert "40.0 % at the start, 90.0 % at the end, best 95.0 %" in words
    assert f"resume={directory} max_steps={2 * TrainConfig().max_steps}" in words
    assert f"model={directory}/checkpoints/best grounding=target prompt=brief" in words
    assert (directory / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_is_one_line_with_the_traceback_in_a_file(monkeypatch, tmp_path, capsys) -> None:
    status, trainer, directory = run_with(monkeypatch, tmp_path, raising(RuntimeError("boom\nand more")))
    assert (status, trainer.closed) == (1, 1)
    error = capsys.readouterr().err
    assert error == f"error: RuntimeError: boom (traceback: {directory / 'error.log'})\n"
    assert "Traceback" in (directory / "error.log").read_text()


def test_an_interrupted_run_exits_with_130_and_says_how_to_go_on(monkeypatch, tmp_path, capsys) -> None:
    def interrupted() -> TrainResult:
        (tmp_path / "run" / "checkpoints").mkdir()
        raise KeyboardInterrupt

    status, trainer, directory = run_with(monkeypatch, tmp_path, interrupted)
    assert (status, trainer.closed) == (130, 1)
    assert f"resume={directory}" in capsys.readouterr().err


def test_a_refusal_before_the_first_step_leaves_no_directory(monkeypatch, tmp_path, capsys) -> None:
    status, _, directory = run_with(monkeypatch, tmp_path, raising(ConfigError("model.path=x: no such model")))
    assert status == 2
    assert capsys.readouterr().err == "error: model.path=x: no such model\n"
    assert not directory.exists()


def test_a_refusal_after_the_first_step_keeps_everything(monkeypatch, tmp_path) -> None:
    def refused() -> TrainResult:
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        raise ConfigError("too late")

    status, _, directory = run_with(monkeypatch, tmp_path, refused)
    assert status == 2
    assert (directory / "metrics.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_interrupts(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the tests go on talking
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    environment = dict(os.environ)
    try:
        train.prepare_process(TrainConfig())
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        os.environ.clear()
        os.environ.update(environment)


def test_a_hang_up_that_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        train.prepare_process(TrainConfig())
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=no-such-organisation/no-such-model"], "no-such-organisation/no-such-model"),
        (["env=miniwob", "env.args.browser_path=/no/such/browser"], "/no/such/browser"),
        (["env.tasks=[no_such_category]"], "no_such_category"),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert train.main([*arguments, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert len(error) <= 300


SMALL = ["max_steps=2", "rollout.groups_per_step=2", "rollout.group_size=2", "eval.episodes=4", "eval.every_steps=0"]


def pasted(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that was printed, run by a shell; `python` is this one, as in an activated environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, shell=True, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


@pytest.mark.slow
def test_a_small_run_leaves_everything_it_promises_and_its_commands_work_when_pasted(tmp_path: Path) -> None:
    done = command(*SMALL, "run_name=small", "output_dir=jürgen's (a), b=c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = tmp_path / "jürgen's (a), b=c" / "small"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["backend"], summary["steps"], summary["seed"]) == ("areal", 2, 0)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    expected = {"config.yaml", "run.json", "eval.jsonl", "checkpoints", "tensorboard", "learning_curve.png"}
    assert expected <= {file.name for file in run.iterdir()}
    episode, resume, curves, watch, _ = (line.strip() for line in done.stdout.splitlines()[-5:])
    for line in (episode, curves, f"{watch} --export pages"):
        assert pasted(line, tmp_path).returncode == 0, line
    on = pasted(resume.replace("max_steps=4", "max_steps=3"), tmp_path)
    assert on.returncode == 0, on.stderr
    assert on.stdout.splitlines()[0] == "max_steps: 2 -> 3"
    (resumed,) = set(run.parent.iterdir()) - {run}
    assert [row["step"] for row in training_rows(lineage_of(resumed))] == [1, 2, 3]
    assert (resumed / "checkpoints" / "best" / "manifest.json").is_file()


def killed(arguments: list[str], run: Path, ready: Callable[[], bool], *numbers: signal.Signals) -> tuple[int, str]:
    """Exit status and errors of a run that got the signals `numbers` when it was `ready`."""
    process = subprocess.Popen(
        [*TRAIN, *arguments], cwd=run.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    _, error = process.communicate(timeout=300)
    return process.returncode, error


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on_with_what_there_is(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    many = [*SMALL[1:], "max_steps=1000", "eval.baseline=false", "checkpoint.every_steps=2", "run_name=cut"]
    three = lambda: len(read_rows(outputs / "cut" / "metrics.jsonl")) >= 3  # noqa: E731
    assert killed(many, outputs / "cut", three, signal.SIGKILL)[0] == -signal.SIGKILL
    started = lambda: (outputs / "cut-2" / "run.json").exists()  # noqa: E731
    assert killed(many, outputs / "cut-2", started, signal.SIGKILL)[0] == -signal.SIGKILL
    saved = find_checkpoint(str(outputs / "cut"))
    step = read_state(saved).step
    done = command("resume=auto", "run_name=cut", f"max_steps={step + 1}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "resume=auto: passed over outputs/cut-2: it has no checkpoint",
        f"resume=auto: outputs/cut, step {step}",
        f"max_steps: 1000 -> {step + 1}",
    ]
    about = json.loads((outputs / "cut-3" / "run.json").read_text())
    assert (about["resumed_from"], about["resumed_step"]) == (str(outputs / "cut"), step)
    rows = training_rows(lineage_of(outputs / "cut-3"))
    assert [row["step"] for row in rows] == list(range(1, step + 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "numbers"),
    [
        ("phase=2", [signal.SIGTERM]),
        ("backend=legacy", [signal.SIGHUP]),
        ("phase=3", [signal.SIGINT] * 3),
    ],
)
def test_an_interrupted_run_saves_and_can_be_resumed(side: str, numbers: list[signal.Signals], tmp_path: Path) -> None:
    many = [*SMALL[1:], side, "max_steps=1000", "eval.baseline=false", "checkpoint.every_minutes=0", "run_name=cut"]
    run = tmp_path / "outputs" / "cut"
    status, error = killed(many, run, (run / "metrics.jsonl").exists, *numbers)
    assert status == 130, error
    assert "Traceback" not in error
    trained = len(read_rows(run / "metrics.jsonl"))
    done = pasted(f"{error.partition('go on with: ')[2].strip()} max_steps={trained + 1} run_name=on", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_rows(tmp_path / "outputs" / "on" / "metrics.jsonl")] == [trained + 1]
