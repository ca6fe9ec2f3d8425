"""The command: its keys, what it trains and what it finds."""

import io
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.compare_rig import learning_run, row, settings, write_run
from trainers.command import compare as command
from trainers.compare.launch import BarDisplay, PlainDisplay, open_display, run
from trainers.compare.options import CompareConfig, read_arguments
from trainers.compare.plan import find, named_runs, plan
from trainers.compare.session import prepare

ROOT = Path(__file__).parents[1]
COMPARE = [sys.executable, str(ROOT / "compare.py")]
FILES = ["compare.csv", "compare.html", "compare.md", "compare.png", "curves.csv"]

# Stands for train.py: writes a finished run of the configuration it is given, unless the test says otherwise.
FAKE_TRAIN = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.compare_rig import evaluation, row
from trainers.config.compose import load_config
from trainers.run.directory import create_run_directory
config = load_config(sys.argv[1:])
directory = create_run_directory(config)
if config.seed == 13:
    (directory / "error.log").write_text("Traceback (most recent call last):\\nRuntimeError: bad luck")
    sys.exit("error: RuntimeError: bad luck (traceback: error.log)")
print("step 1/1  reward 0.5", flush=True)
(directory / "metrics.jsonl").write_text(json.dumps(row(1)))
(directory / "eval.jsonl").write_text(json.dumps(evaluation(0, 0.5)) + "\\n" + json.dumps(evaluation(1, 0.9)))
(directory / "summary.json").write_text('{{"steps": 1}}')
"""


@pytest.fixture
def fake_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A command that takes the place of `train.py`; the test's directory becomes the present one."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN)
    monkeypatch.setattr(command, "TRAIN", (sys.executable, str(script)))
    monkeypatch.setattr(command, "_interrupt_on_signals", lambda: None)
    return command.TRAIN


def test_help_is_quick_and_lists_every_key() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*COMPARE, "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {key} " in done.stdout for key in CompareConfig.__dataclass_fields__)
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_no_request_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "python compare.py runs=[outputs/A,outputs/B]" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seeds=[0]"], "error: give either runs=[outputs/A,outputs/B] or backends=[legacy,areal]"),
        (["runs=[a]", "backends=[legacy]"], "give either runs="),
        (["runs=[no/such/run]"], "runs=no/such/run: no such directory"),
        (["runs=[no/such/*]"], "runs=no/such/*: no run directory matches"),
        (["runs=[a]", "max_steps=3"], "max_steps=3: a key of train.py; allowed only with backends=[...]"),
        (["backends=[legacy]", "seeds=[-1]"], "seeds=-1"),
        (["backends=[legacy]", "seeds=[]"], "seeds=[]"),
        (["backends=[legacy]", "phase=3"], "phase=[3] is for backends=[areal]"),
        (["backends=[areal]", "phase=4"], "phase=4"),
        (["backends=[lagacy]"], "backend=lagacy: no such backend; allowed: "),
        (["backends=[legacy]", "seed=1"], "seed=1: not a key of compare.py; use seeds=[...]"),
        (["backends=[legacy]", "resume=x"], "resume=x: not a key of compare.py"),
        (["backends=[legacy]", "rollout.grup_size=4"], "rollout.grup_size=4: unknown key; did you mean"),
        (["backends=[legacy]", "margin=2"], "margin=2"),
        (["backends=legacy,areal"], "backends=legacy,areal: one value only; a list is written backends=[a,b]"),
        (["backends"], "backends: not an override"),
        (["--fast"], "--fast: unknown option"),
    ],
)
def test_a_bad_request_is_one_line_and_status_2(
    arguments: list[str], words: str, fake_train: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(tmp_path.iterdir())
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 300
    assert sorted(tmp_path.iterdir()) == files


def test_a_single_value_stands_for_a_list_and_other_keys_go_on_to_training() -> None:
    options, overrides = read_arguments(
        ["backends=legacy", "seeds=4", "env.tasks=[word]", "target=0.8", "+max_steps=3"]
    )
    assert (options.backends, options.seeds, options.target) == (("legacy",), (4,), 0.8)
    assert overrides == ["env.tasks=[word]", "+max_steps=3"]


def test_runs_are_given_once_each_and_by_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/b-1", "outputs/b-0"):
        write_run(tmp_path / name, settings(), [row(1)], [])
    (tmp_path / "outputs/b-2").mkdir()
    assert named_runs(["outputs/b-*", "outputs/b-1"]) == [Path("outputs/b-0"), Path("outputs/b-1")]
    assert named_runs([f"{tmp_path}/outputs/*-1"]) == [tmp_path / "outputs/b-1"]


@pytest.mark.slow
def test_a_report_of_given_runs_has_all_its_files(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for backend in ("legacy", "areal"):
        learning_run(tmp_path / "outputs" / backend, backend)
    assert command.main(["runs=[outputs/legacy,outputs/areal]", "out=report"]) == 0
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == FILES
    assert "report/compare.html" in capsys.readouterr().out
    options = CompareConfig(runs=("outputs/legacy", "outputs/areal"))
    places = {prepare(options, [], ()).directory for _ in range(2)}
    assert len(places) == 1
    assert places.pop().parent == Path("outputs")


@pytest.mark.slow
def test_what_is_missing_is_trained_what_fails_is_told_and_a_second_call_runs_only_that(
    fake_train: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainers.compare.page.draw_sections", lambda _: [])
    monkeypatch.setattr("trainers.compare.report.draw_picture", lambda _, output: output)
    arguments = ["backends=[legacy]", "seeds=[0,13,1]", "max_steps=1", "out=report"]
    assert command.main(arguments) == 1
    captured = capsys.readouterr()
    assert "[1/3 legacy seed 0] step 1/1" in captured.out
    assert captured.err == (
        "failed: legacy seed 13: RuntimeError: bad luck (traceback: error.log) "
        "(output: report/logs/legacy-seed-13.log)\n"
    )
    runs = sorted(run.name for run in (tmp_path / "outputs").iterdir())
    assert runs == [f"legacy-default-seed{seed}" for seed in (0, 1, 13)]
    assert "bad luck" in (tmp_path / "report" / "compare.md").read_text()
    assert command.main(arguments) == 1
    again = sorted(run.name for run in (tmp_path / "outputs").iterdir())
    assert set(again) - set(runs) == {"legacy-default-seed13-2"}


@pytest.mark.slow
def test_nothing_is_written_when_every_run_failed(fake_train: object, tmp_path: Path, capsys) -> None:
    assert command.main(["backends=[legacy]", "seeds=[13]", "out=report"]) == 1
    assert capsys.readouterr().err.endswith("error: no run finished, nothing to compare\n")
    assert not (tmp_path / "report" / "compare.html").exists()


def test_runs_are_found_by_configuration_whatever_they_are_called(fake_train: object, tmp_path: Path) -> None:
    overrides = ["max_steps=1", "eval.episodes=200"]
    (wanted,) = plan(CompareConfig(backends=("legacy",), seeds=(3,)), overrides)
    assert "run_name=legacy-default-seed3" in wanted.overrides
    outputs = tmp_path / "outputs"

    def there(name: str, **keys: object) -> Path:
        return write_run(outputs / name, settings(**({"seed": 3, "max_steps": 1} | keys)), [row(1)], [], {})

    there("other-seed", seed=4)
    there("other-rate", optim__learning_rate=1e-3)
    (outputs / "no-run").mkdir()
    (outputs / "broken").mkdir()
    (outputs / "broken" / "config.yaml").write_text("backend: legacy\nseed: 3\nno_such_key: 1\n")
    assert find([wanted])[0].finished is None
    mine = there("mine", run_name="mine", experiment="other", env__tasks=list(wanted.config.env.tasks))
    assert find([wanted])[0].finished == mine.relative_to(tmp_path)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_unless_a_later_one_failed(fake_train: tuple[str, ...], tmp_path: Path) -> None:
    options = CompareConfig(backends=("legacy",), seeds=(3,))
    (wanted,) = plan(options, [])
    tree = settings(seed=3, env__tasks=list(wanted.config.env.tasks))
    cut = write_run(tmp_path / "outputs" / "cut", tree, [row(1)], [])
    assert find([wanted])[0].interrupted is None
    (cut / "checkpoints" / "last").mkdir(parents=True)
    assert find([wanted])[0].interrupted == Path("outputs/cut")
    session = prepare(options, [], fake_train)
    assert session.train_missing() == []
    (after,) = find([wanted])
    assert after.finished is not None
    assert "resume: outputs/cut" in (after.finished / "config.yaml").read_text()
    (after.finished / "summary.json").unlink()
    (after.finished / "error.log").write_text("RuntimeError: boom")
    assert find([wanted])[0].interrupted is None


def test_the_backends_of_a_seed_run_after_each_other() -> None:
    options = CompareConfig(backends=("legacy", "legacy"), seeds=(1, 0))
    assert [each.label for each in plan(options, [])] == ["legacy seed 1", "legacy seed 0"]


def python(source: str) -> list[str]:
    return [sys.executable, "-u", "-c", source]


def test_a_run_is_logged_watched_and_its_failure_named(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "logs" / "a.log"
    assert run(python("print('one\\n\\ntwo')"), log, said.append) is None
    assert said == ["one", "two"]
    assert log.read_text() == "one\n\ntwo\n"
    assert (
        run(python("import sys; print('error: no luck', file=sys.stderr); print('x'); sys.exit(1)"), log, said.append)
        == "no luck"
    )
    assert run(python("raise SystemExit(7)"), log, said.append) == "exit status 7"
    assert run(python("raise SystemExit(130)"), log, said.append) == "interrupted"
    assert run(python("import os; os.kill(os.getpid(), 9)"), log, said.append) == "killed by SIGKILL"


def test_an_interrupt_reaches_the_run_and_waits_until_it_has_saved(tmp_path: Path) -> None:
    source = (
        "import pathlib, time\n"
        "try:\n    print('started'); time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    time.sleep(0.3); pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    )

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(python(source), tmp_path / "a.log", interrupt)
    assert (tmp_path / "saved").exists()


def test_an_interrupted_comparison_says_that_it_goes_on(fake_train: object, monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.compare.session.run", interrupted)
    assert command.main(["backends=[legacy]"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def show(display_of: Callable[[Console], PlainDisplay | BarDisplay], terminal: bool) -> str:
    file = io.StringIO()
    display = display_of(Console(file=file, force_terminal=terminal, width=110, highlight=False))
    display.start("legacy seed 0")
    for text in ("step 2/4  reward 0.5", "evaluation [bold]x", "metrics.jsonl   rows"):
        display.line(text)
    display.end("finished")
    display.close()
    return file.getvalue()


def test_the_display_is_plain_lines_or_bars() -> None:
    assert show(lambda console: PlainDisplay(console, 3), terminal=False).splitlines() == [
        "[1/3 legacy seed 0] step 2/4  reward 0.5",
        "[1/3 legacy seed 0] evaluation [bold]x",
        "[1/3 legacy seed 0] finished",
    ]
    bars = show(lambda console: BarDisplay(console, 3), terminal=True)
    assert "legacy seed 0: finished" in bars
    assert "2/4" in bars
    assert isinstance(open_display(1, Console(file=io.StringIO())), PlainDisplay)


@pytest.mark.slow
def test_two_seeds_are_really_trained_compared_and_found_again(tmp_path: Path) -> None:
    small = ["experiment=quick", "max_steps=1", "eval.episodes=8"]
    arguments = [*COMPARE, "backends=[legacy]", "seeds=[0,1]", *small, "out=report"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "[2/2 legacy seed 1] step 1/1" in done.stdout
    assert sorted(file.name for file in (tmp_path / "report").iterdir() if file.is_file()) == FILES
    runs = sorted((tmp_path / "outputs").iterdir())
    assert [run.name for run in runs] == ["legacy-quick-seed0", "legacy-quick-seed1"]
    again = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert "step 1/1" not in again.stdout
    assert sorted((tmp_path / "outputs").iterdir()) == runs
