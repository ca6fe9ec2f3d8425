"""A run and its resumptions are one thing for whoever reads them, or goes on with them."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cua_agent.scratch import held
from tests.compare_rig import evaluation, row, settings, write_run
from trainers import curves
from trainers.compare.runs import load_run
from trainers.config import TrainConfig
from trainers.config.compose import compose_run, load_config
from trainers.config.overrides import typed_text
from trainers.protocol import TrainerState
from trainers.run.checkpoint_files import CheckpointError, write_checkpoint
from trainers.run.curves import read_curve
from trainers.run.directory import create_run_directory
from trainers.run.leftovers import sweep_lineage
from trainers.run.lineage import evaluation_rows, lineage_of, training_rows
from trainers.run.pruning import prune_lineage
from trainers.run.resuming import (
    begun_again,
    carry_best,
    described,
    extended,
    find_checkpoint,
    measures_changed,
    nothing_left,
    saved_step,
    settle_auto,
    starting_point,
)

pytestmark = pytest.mark.slow


def part(directory: Path, first: int, last: int, loss: float, evaluated: tuple[int, ...] = (), **about: Any) -> Path:
    """A run directory with rows of the steps `first` to `last`."""
    rows = [row(step, loss=loss) for step in range(first, last + 1)]
    return write_run(directory, settings(), rows, [evaluation(step, loss) for step in evaluated], **about)


def three_parts(folder: Path) -> Path:
    """0 to 5, killed with a checkpoint of step 4; 5 to 9, killed with one of step 7; 8 to 10."""
    part(folder / "a", 1, 5, 0.1, (0, 5))
    part(folder / "b", 5, 9, 0.2, (5, 8), resumed_from=str(folder / "a"), resumed_step=4)
    return part(folder / "c", 8, 10, 0.3, (10,), resumed_from=str(folder / "b"), resumed_step=7)


def checkpoint(path: Path, **state: Any) -> Path:
    """A sealed checkpoint with nothing in it but its state."""
    values = json.dumps(asdict(TrainerState(**state)))
    write_checkpoint(path, lambda directory: (directory / "trainer_state.json").write_text(values) and None)
    return path


def started_run(folder: Path, name: str, day: int, *overrides: str, **about: object) -> Path:
    """The directory of a run that began on the `day`-th of a month."""
    found = compose_run([*overrides, f"run_name={name}", typed_text("output_dir", str(folder))])
    directory = create_run_directory(found.config, presets=found.presets, resumed=about)
    content = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**content, "started": f"2026-01-{day:02d}T00:00:00"}))
    return directory


# Reading.


def test_rows_of_a_lineage_have_no_gap_and_no_double_and_lost_steps_are_replaced(tmp_path: Path) -> None:
    lineage = lineage_of(three_parts(tmp_path))
    rows = training_rows(lineage)
    assert [r["step"] for r in rows] == list(range(1, 11))
    assert [r["loss"] for r in rows] == [0.1] * 4 + [0.2] * 3 + [0.3] * 3
    assert [(r["step"], r["success_rate"]) for r in evaluation_rows(lineage)] == [(0, 0.1), (5, 0.2), (10, 0.3)]


def test_curves_and_comparisons_read_the_lineage_and_minutes_go_on(tmp_path: Path) -> None:
    last = three_parts(tmp_path)
    curve, run = read_curve(last), load_run(last)
    assert list(curve.minutes) == list(range(11))
    assert curve.minutes[10] == pytest.approx(sum(r["step_s"] for r in run.rows) / 60)
    assert [step for step, _ in curve.training] == run.steps == list(range(1, 11))
    assert curve.evaluations["seeds"] == [(0, 0.1), (5, 0.2), (10, 0.3)]


def test_a_run_that_was_killed_before_its_first_step_shows_what_it_went_on_from(tmp_path: Path) -> None:
    part(tmp_path / "a", 1, 5, 0.1)
    part(tmp_path / "b", 1, 0, 0.2, resumed_from=str(tmp_path / "a"), resumed_step=3)
    assert [r["step"] for r in training_rows(lineage_of(tmp_path / "b"))] == [1, 2, 3]


def test_directories_that_were_moved_together_are_found(tmp_path: Path) -> None:
    three_parts(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    lineage = lineage_of(tmp_path / "after" / "c")
    assert ([each.directory.name for each in lineage.parts], lineage.notes) == (["a", "b", "c"], ())


def test_a_parent_that_is_gone_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    last = three_parts(tmp_path)
    shutil.rmtree(tmp_path / "a")
    lineage = lineage_of(last)
    assert [r["step"] for r in training_rows(lineage)] == [5, 6, 7, 8, 9, 10]
    assert lineage.notes == (f"b: resumed from {tmp_path}/a, which is not there; its minutes and episodes are unknown",)
    assert load_run(last).notes == lineage.notes
    assert min(read_curve(last).minutes) == 4


def test_a_damaged_row_in_the_middle_costs_that_row_only_and_is_said(tmp_path: Path) -> None:
    directory = part(tmp_path / "a", 1, 4, 0.1)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    (directory / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:], '{"step": 5, "lo']))
    lineage = lineage_of(directory)
    assert [r["step"] for r in training_rows(lineage)] == [1, 3, 4]
    assert lineage.notes == ("a: line 2 of metrics.jsonl cannot be read and is left out",)


def test_one_lineage_is_one_curve(tmp_path: Path, capsys, monkeypatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(curves, "draw", lambda all_curves, output: drawn.extend(c.name for c in all_curves) or output)
    last = three_parts(tmp_path)
    assert curves.main([str(tmp_path / "a"), str(tmp_path / "b"), str(last), "--output", "x.png"]) == 0
    assert drawn == ["c"]


@pytest.mark.parametrize("name", ["nosuch", ""])
def test_what_is_no_run_is_one_line_and_status_2(name: str, tmp_path: Path, capsys) -> None:
    assert curves.main([str(tmp_path / name), "--output", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / name}: no run directory of train.py\n"
    assert not (tmp_path / "x.png").exists()


# Where a run goes on.


def test_a_run_directory_means_its_newest_intact_checkpoint_and_damage_is_said(tmp_path: Path) -> None:
    run = started_run(tmp_path, "a", 1)
    checkpoint(run / "checkpoints" / "step_000004", step=4)
    broken = checkpoint(run / "checkpoints" / "last", step=6)
    (broken / "trainer_state.json").write_text(json.dumps(asdict(TrainerState(step=7))))
    start = starting_point(str(run))
    assert (start.checkpoint.name, start.state.step, start.directory) == ("step_000004", 4, run)
    assert start.notes[0].startswith(f"passed over: checkpoint {broken} is damaged")


def test_a_run_without_a_checkpoint_of_its_own_goes_on_from_its_parents(tmp_path: Path) -> None:
    a = started_run(tmp_path, "a", 1)
    last = checkpoint(a / "checkpoints" / "last", step=6, best_step=2)
    best = checkpoint(a / "checkpoints" / "best", step=2, best_step=2)
    b = started_run(tmp_path, "b", 2, **described(starting_point(str(a))))
    assert carry_best(starting_point(str(a)), b / "checkpoints" / "best") == best
    start = starting_point(str(b))
    assert (start.checkpoint, start.directory) == (last, a)
    assert start.notes == (f"{b} has no checkpoint of its own",)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run directory"):
        find_checkpoint(str(started_run(tmp_path, "new", 3)))


def test_best_is_found_through_the_lineage_and_carried_over_intact(tmp_path: Path) -> None:
    a = started_run(tmp_path, "a", 1)
    checkpoint(a / "checkpoints" / "best", step=2, best_step=2)
    checkpoint(a / "checkpoints" / "last", step=6, best_step=2)
    b = started_run(tmp_path, "b", 2, **described(starting_point(str(a))))
    checkpoint(b / "checkpoints" / "last", step=9, best_step=2)  # as a version did that carried nothing over
    target = tmp_path / "c" / "checkpoints" / "best"
    assert carry_best(starting_point(str(b)), target) == a / "checkpoints" / "best"
    shutil.rmtree(a)
    assert starting_point(str(target)).state.step == 2
    assert carry_best(starting_point(str(b)), tmp_path / "d" / "best") is None


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("env.tasks=[word]", True), ("eval.episodes=7", True), ("model.prompt=full", True),
        ("rollout.temperature=0.5", True), ("env.args.reset=fresh", True), ("eval.every_steps=7", False),
        ("optim.learning_rate=1e-6", False), ("env.args.prewarm=3", False), ("backend=legacy", False),
    ],
)  # fmt: skip
def test_evaluations_that_measure_something_else_are_known(tmp_path: Path, change: str, counts: bool) -> None:
    run = started_run(tmp_path, "a", 1, *(["env=gbox_local"] if "env.args." in change else []))
    last = checkpoint(run / "checkpoints" / "last", step=1)
    config = load_config([f"resume={run}", change])
    assert measures_changed(config, starting_point(str(last))) == ([change.partition("=")[0]] if counts else [])


def test_a_budget_that_a_finished_run_has_used_up_is_given_once_more(tmp_path: Path) -> None:
    run = started_run(tmp_path, "a", 1, "max_steps=3", "max_minutes=1")
    checkpoint(run / "checkpoints" / "last", step=3, train_s=90.0)
    config = load_config([f"resume={run}"])
    assert extended(config, starting_point(str(run)), []) == (config, [])  # killed while it was evaluated at the end
    (run / "summary.json").write_text("{}")
    longer, said = extended(config, starting_point(str(run)), [])
    assert longer == replace(config, max_steps=6, max_minutes=2.5)
    assert [line.partition(" (")[0] for line in said] == ["max_steps: 3 -> 6", "max_minutes: 1 -> 2.5"]
    assert extended(config, starting_point(str(run)), ["max_steps=3", "max_minutes=1"]) == (config, [])


def test_a_run_that_died_before_its_first_checkpoint_is_part_of_the_lineage(tmp_path: Path) -> None:
    a = started_run(tmp_path, "a", 1)
    checkpoint(a / "checkpoints" / "last", step=6)
    b = started_run(tmp_path, "b", 2, **described(starting_point(str(a))))
    c = started_run(tmp_path, "c", 3, **described(starting_point(str(b))))
    assert [part.directory for part in lineage_of(c).parts] == [a, b, c]
    assert starting_point(str(c)).state.step == 6


def test_a_checkpoint_outside_of_run_directories_is_gone_on_from_again(tmp_path: Path) -> None:
    single = checkpoint(tmp_path / "elsewhere" / "kept", step=4)
    run = started_run(tmp_path, "a", 1, **described(starting_point(str(single))))
    assert starting_point(str(run)).checkpoint == single


def test_leftovers_of_interrupted_writes_are_swept_unless_somebody_is_writing(tmp_path: Path) -> None:
    run = started_run(tmp_path, "a", 1)
    kept = checkpoint(run / "checkpoints" / "last", step=6)
    checkpoint(run / "checkpoints" / "step_000008", step=8).rename(run / "checkpoints" / ".step_000008.new")
    for name in ("checkpoints/.step_000009.new", "checkpoints/.last.former", "trajectories/.step.123", ".trial-x"):
        (run / name).mkdir(parents=True)
    (run / "summary.json.part").touch()
    with held(run):
        assert sweep_lineage(run) == []
    assert sweep_lineage(run) == [f"swept from {run}: 6 leftovers of interrupted writes"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last", "step_000008"]
    assert find_checkpoint(str(run)).name == "step_000008"
    assert {path.name for path in run.iterdir()} == {"run.json", "config.yaml", ".lock", "checkpoints", "trajectories"}
    assert kept.is_dir()


def test_a_former_checkpoint_whose_replacement_never_came_is_put_back(tmp_path: Path) -> None:
    run = started_run(tmp_path, "a", 1)
    checkpoint(run / "checkpoints" / "last", step=6).rename(run / "checkpoints" / ".last.former")
    with held(run):
        pass
    sweep_lineage(run)
    assert find_checkpoint(str(run)) == run / "checkpoints" / "last"


@pytest.mark.parametrize(
    ("typed", "ended"), [((), True), (("max_steps=3",), True), (("max_steps=4",), False), (("eval.patience=9",), False)]
)
def test_auto_has_nothing_left_to_do_with_a_run_that_has_ended(tmp_path: Path, typed: tuple[str], ended: bool) -> None:
    run = started_run(tmp_path, "a", 1, "max_steps=5")
    checkpoint(run / "checkpoints" / "last", step=3)
    config = load_config([f"resume={run}", *typed])
    assert not nothing_left(config, starting_point(str(run)))
    (run / "summary.json").write_text("{}")
    assert nothing_left(config, starting_point(str(run))) is ended


# resume=auto.


def auto(folder: Path, *overrides: str) -> tuple[str | None, list[str]]:
    """The run that is found, and what is said about it."""
    typed = [*overrides, "resume=auto", typed_text("output_dir", str(folder))]
    settled = settle_auto(load_config(typed), typed)
    config = load_config(settled.overrides)
    return config.resume and Path(config.resume).name, settled.say


def test_auto_finds_the_newest_run_of_the_name_also_under_a_number_or_through_a_parent(tmp_path: Path) -> None:
    assert auto(tmp_path, "run_name=a") == (
        None, [f"resume=auto: no run of run_name=a in {tmp_path} to go on with; a new one begins"]
    )  # fmt: skip
    first = started_run(tmp_path, "a", 1)
    checkpoint(first / "checkpoints" / "last", step=3)
    checkpoint(started_run(tmp_path, "other", 9) / "checkpoints" / "last", step=9)
    assert auto(tmp_path, "run_name=a") == ("a", [f"resume=auto: {first}, step 3"])
    checkpoint(started_run(tmp_path, "a", 2) / "checkpoints" / "last", step=5)
    assert auto(tmp_path, "run_name=a")[0] == "a-2"
    child = started_run(tmp_path, "named-otherwise", 3, **described(starting_point(str(tmp_path / "a-2"))))
    checkpoint(child / "checkpoints" / "last", step=6)
    assert auto(tmp_path, "run_name=a")[0] == "named-otherwise"
    assert saved_step(load_config(["run_name=a", typed_text("output_dir", str(tmp_path))])) == 6


def test_auto_walks_past_a_run_that_died_before_its_first_checkpoint_and_says_so(tmp_path: Path) -> None:
    alive = started_run(tmp_path, "a", 1)
    checkpoint(alive / "checkpoints" / "last", step=3)
    dead = started_run(tmp_path, "a", 2)
    assert auto(tmp_path, "run_name=a") == (
        "a", [f"resume=auto: passed over {dead}: it has no checkpoint", f"resume=auto: {alive}, step 3"]
    )  # fmt: skip


def test_a_run_without_any_checkpoint_is_begun_again_and_is_no_run_of_its_own(tmp_path: Path) -> None:
    typed = ["run_name=a", "resume=auto", typed_text("output_dir", str(tmp_path))]
    first = started_run(tmp_path, "a", 1)
    second = started_run(tmp_path, "a", 2, **begun_again(first))
    settled = settle_auto(load_config(typed), typed)
    assert settled.begun_again == second
    assert settled.say[0] == f"resume=auto: passed over {second}: it has no checkpoint"
    assert len(settled.say) == 2
    died = part(tmp_path / "died", 1, 4, 0.1)
    assert [r["loss"] for r in training_rows(lineage_of(part(tmp_path / "b", 1, 2, 0.2, **begun_again(died))))] == [
        0.2,
        0.2,
    ]


def continued_run(folder: Path, name: str, day: int, former: Path) -> Path:
    """A run that takes the place of `former`, as `resume=auto` begins it."""
    return started_run(folder, name, day, **described(starting_point(str(former)), continues=True))


def dies(directory: Path) -> None:
    with held(directory):
        pass


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_a_run_that_is_continued_again_and_again_keeps_as_many_checkpoints_as_one(tmp_path: Path) -> None:
    a = started_run(tmp_path, "a", 1)
    for step in (2, 4):
        checkpoint(a / "checkpoints" / f"step_{step:06d}", step=step)
    checkpoint(a / "checkpoints" / "best", step=4, best_step=4, best_success=0.5)
    checkpoint(a / "checkpoints" / "last", step=5)
    dies(a)
    b = continued_run(tmp_path, "a", 2, a)
    prune_lineage(b, keep=2)  # its first checkpoint is the carried best
    assert names_in(a) == ["best", "step_000002", "step_000004"]
    checkpoint(b / "checkpoints" / "best", step=4, best_step=4, best_success=0.5)
    checkpoint(b / "checkpoints" / "step_000006", step=6)
    prune_lineage(b, keep=2)
    assert (names_in(a), names_in(b)) == (["step_000004"], ["best", "step_000006"])
    dies(b)
    c = continued_run(tmp_path, "a", 3, b)
    checkpoint(c / "checkpoints" / "best", step=7, best_step=7, best_success=0.4)  # of another measure
    checkpoint(c / "checkpoints" / "step_000008", step=8)
    prune_lineage(c, keep=2)
    assert (names_in(a), names_in(b), names_in(c)) == ([], ["best", "step_000006"], ["best", "step_000008"])
    assert starting_point(str(c)).checkpoint == c / "checkpoints" / "step_000008"
    with pytest.raises(CheckpointError, match=f"has no checkpoint any more: .*{c} went on with it"):
        starting_point(str(a))


@pytest.mark.parametrize("kept", ["alive", "resumed by hand", "finished"])
def test_checkpoints_of_a_run_that_is_not_replaced_stay(tmp_path: Path, kept: str) -> None:
    a = started_run(tmp_path, "a", 1)
    checkpoint(a / "checkpoints" / "step_000002", step=2)
    checkpoint(a / "checkpoints" / "last", step=3)
    if kept == "finished":
        (a / "summary.json").write_text("{}")
    b = started_run(tmp_path, "a", 2, **described(starting_point(str(a)), continues=kept != "resumed by hand"))
    checkpoint(b / "checkpoints" / "step_000004", step=4)
    if kept != "alive":
        dies(a)
        prune_lineage(b, keep=1)
    else:
        with held(a):
            prune_lineage(b, keep=1)
    assert names_in(a) == ["last", "step_000002"]


def test_auto_without_a_name_goes_by_experiment_and_a_typed_seed(tmp_path: Path) -> None:
    checkpoint(started_run(tmp_path, "a", 1, "experiment=quick", "seed=1") / "checkpoints" / "last", step=3)
    checkpoint(started_run(tmp_path, "b", 2, "experiment=quick", "seed=2") / "checkpoints" / "last", step=3)
    checkpoint(started_run(tmp_path, "c", 3) / "checkpoints" / "last", step=3)
    assert auto(tmp_path, "experiment=quick")[0] == "b"
    assert auto(tmp_path, "experiment=quick", "seed=1")[0] == "a"
    assert auto(tmp_path)[0] == "c"
    assert auto(tmp_path, "experiment=miniwob")[0] is None


def test_a_directory_called_auto_can_be_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(started_run(tmp_path, "auto", 1, "seed=5") / "checkpoints" / "last", step=3)
    found = settle_auto(TrainConfig(run_name="auto", output_dir="."), ["resume=auto", "output_dir=."]).overrides
    assert found == ["output_dir=.", f"resume={tmp_path}/auto"]
    assert load_config(found).seed == 5
