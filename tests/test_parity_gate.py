"""Moving up a phase: the ladder and two finished runs decide; and rung 5, over seeds."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.compare_rig import evaluation, learning_run, row, settings, summary_of, write_run
from trainers.compare.runs import Run, load_run
from trainers.config import ConfigError
from trainers.parity.__main__ import main
from trainers.parity.gate import decide, words
from trainers.parity.ladder import Climb, to_json
from trainers.parity.learning import measure_learning, session_for
from trainers.parity.rungs import LADDER, LOSS, Measurement


def ladder(*phases: int) -> Climb:
    return Climb(
        "a recording", tuple(Measurement(rung, phase, "full/plain", 0.0) for phase in phases for rung in LADDER), {}
    )


def run_that_ends_at(directory: Path, success: float, backend: str = "areal", seed: int = 0, **keys: object) -> Run:
    tree, rows = settings(backend, seed, **keys), [row(1), row(2)]
    evaluations = [evaluation(0, 0.4), evaluation(2, success)]
    return load_run(write_run(directory, tree, rows, evaluations, summary_of(tree, rows, evaluations)))


def failed(phase: int, result: Climb, reference: Run, candidate: Run) -> set[str]:
    return {check.name for check in decide(phase, result, reference, candidate) if not check.passed}


@pytest.fixture
def legacy(tmp_path: Path) -> Run:
    return load_run(learning_run(tmp_path / "legacy"))


@pytest.fixture
def areal(tmp_path: Path) -> Run:
    return load_run(learning_run(tmp_path / "areal", "areal"))


def test_go_when_ladder_and_runs_agree(legacy: Run, areal: Run) -> None:
    checks = decide(3, ladder(1, 2, 3), legacy, areal)
    assert all(check.passed for check in checks)
    said = words(3, checks)
    assert said.startswith("phase 3: go\n")
    assert f"pass: parity ladder: all {len(LADDER)} measurements of rungs 0 to 4 passed" in said
    assert "legacy is legacy, areal is phase 3" in said


def test_no_go_without_a_measurement_of_that_phase(legacy: Run, areal: Run) -> None:
    assert failed(3, ladder(1, 2), legacy, areal) == {"parity ladder"}


def test_no_go_names_what_failed_on_the_ladder(legacy: Run, areal: Run) -> None:
    good = ladder(2, 3)
    worse = [replace(m, error=1e-3) if m.rung == LOSS else m for m in good.measurements]
    checks = decide(3, replace(good, measurements=tuple(worse)), legacy, areal)
    assert not checks[0].passed
    assert checks[0].reason == (
        "1 measurements failed, the first: phase 3, rung 1 (loss), full/plain: 0.001, allowed 1e-06"
    )
    assert words(3, checks).startswith("phase 3: no-go\n")


@pytest.mark.parametrize(("phase", "named"), [(2, "phase 3"), (3, "legacy")])
def test_no_go_for_runs_of_other_phases(phase: int, named: str, legacy: Run, areal: Run) -> None:
    before, after = (legacy, areal) if phase == 2 else (areal, legacy)
    check = decide(phase, ladder(1, 2, 3), before, after)[1]
    assert not check.passed and check.reason.endswith(named)


def test_no_go_for_a_run_that_learnt_less(tmp_path: Path, legacy: Run) -> None:
    worse = run_that_ends_at(tmp_path / "worse", 0.6)
    assert "final success not inferior" in failed(3, ladder(3), legacy, worse)


def test_the_command_says_so_by_its_status(
    tmp_path: Path, legacy: Run, areal: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ladder.json"
    file.write_text(to_json(ladder(3)))
    runs = ["--ladder", str(file), "--runs", str(legacy.directory), str(areal.directory)]
    assert main(["gate", "phase=3", *runs]) == 0
    assert main(["gate", "phase=2", *runs]) == 1
    assert main(["gate", "phase=4", *runs]) == 2
    out, err = capsys.readouterr()
    assert "phase 3: go" in out and "phase 2: no-go" in out
    assert err == "error: phase=4: not a gate; allowed: phase=1, phase=2, phase=3\n"


def test_rung_five_is_the_lower_end_of_the_interval(tmp_path: Path) -> None:
    runs = [run_that_ends_at(tmp_path / f"l{seed}", 0.9, "legacy", seed) for seed in range(3)]
    runs += [run_that_ends_at(tmp_path / f"a{seed}", 0.95, "areal", seed) for seed in range(3)]
    runs += [run_that_ends_at(tmp_path / f"b{seed}", 0.5, "areal", seed, phase=1) for seed in range(3)]
    first, third = measure_learning(runs)
    assert (first.phase, first.passed) == (1, False) and first.error == pytest.approx(0.45, abs=0.05)
    assert (third.phase, third.passed, third.error) == (3, True, 0.0)
    assert "difference of final success +5.0 points, 95 % interval over seeds" in third.note


@pytest.mark.parametrize(
    ("keys", "why"),
    [({"eval__episodes": 10}, "not comparable: different eval.episodes"), ({}, "evaluation episodes only")],
)
def test_rung_five_says_what_it_could_not_measure(tmp_path: Path, keys: dict[str, object], why: str) -> None:
    legacy = run_that_ends_at(tmp_path / "l", 0.9, "legacy")
    [found] = measure_learning([legacy, run_that_ends_at(tmp_path / "a", 0.9, "areal", **keys)])
    assert why in found.note


def test_rung_five_needs_runs_of_both_backends(legacy: Run) -> None:
    with pytest.raises(ConfigError, match="1 of backend=legacy, 0 of backend=areal; allowed: some of each"):
        measure_learning([legacy])


def test_rung_five_plans_every_phase_unless_told_otherwise(tmp_path: Path) -> None:
    planned = session_for([f"output_dir={tmp_path}", "seeds=[4]"]).planned
    assert [each.label for each in planned] == [
        "legacy seed 4", "areal phase 1 seed 4", "areal phase 2 seed 4", "areal phase 3 seed 4"
    ]  # fmt: skip


@pytest.mark.slow
def test_rung_five_on_runs_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        learning_run(tmp_path / f"{backend}{seed}", backend, seed) for backend in ("legacy", "areal") for seed in (0, 1)
    ]
    out = tmp_path / "report"
    status = main(["learning", f"runs=[{','.join(map(str, runs))}]", f"out={out}"])
    assert status == 0 and "passed" in capsys.readouterr().out
    assert (out / "learning.json").is_file() and "5 learning" in (out / "learning.md").read_text()
