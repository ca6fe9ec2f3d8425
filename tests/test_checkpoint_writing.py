"""When checkpoints are written, that training goes on meanwhile, and what a failed one costs."""

import errno
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.legacy_rig import CONFIG, MakeRig
from trainers.config import EvalConfig
from trainers.config.run import CheckpointConfig
from trainers.protocol import Files, Snapshot
from trainers.run import checkpoint
from trainers.run.checkpoint_files import read_state, verify_checkpoint
from trainers.run.checkpoint_writer import CheckpointWriter
from trainers.run.disk import NoSpace

FULL = OSError(errno.ENOSPC, "No space left on device")


def nothing(*_: Any) -> None: ...


def test_a_detached_snapshot_is_written_elsewhere_and_only_the_next_one_waits(tmp_path: Path) -> None:
    writer, may_end, threads = CheckpointWriter(), threading.Event(), []

    def write(path: Path, _: Files) -> None:
        may_end.wait(60)
        threads.append(threading.current_thread())

    writer.write(Snapshot(write, detached=True), tmp_path, written=nothing, failed=nothing)
    assert threads == []
    may_end.set()
    writer.write(Snapshot(write, detached=False), tmp_path, written=nothing, failed=nothing)
    assert [thread is threading.current_thread() for thread in threads] == [False, True]


def test_a_failure_is_told_in_the_thread_that_trains(tmp_path: Path) -> None:
    writer, told = CheckpointWriter(), []

    def write(path: Path, _: Files) -> None:
        raise FULL

    def failed(error: Exception) -> None:
        told.append((error, threading.current_thread()))

    writer.write(Snapshot(write, detached=True), tmp_path, written=lambda: told.append("written"), failed=failed)
    writer.wait()
    writer.look()
    assert told == [(FULL, threading.current_thread())]


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, ["step_000001", "step_000002"]), (60.0, []), (0.0, [])])
def test_checkpoints_are_written_by_the_clock(make_rig: MakeRig, minutes: float, steps: list[str]) -> None:
    config = replace(CONFIG, checkpoint=CheckpointConfig(every_minutes=minutes))
    rig = make_rig(config)
    rig.trainer.train()
    assert sorted(path.name for path in (rig.directory / "checkpoints").iterdir()) == ["best", "last", *steps]
    for path in (rig.directory / "checkpoints").iterdir():
        verify_checkpoint(path)


def test_a_checkpoint_holds_its_own_moment_whenever_it_is_written(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    rig.trainer.train()
    snapshot = rig.trainer._learner.snapshot(rig.trainer.state)
    assert snapshot.detached
    before = rig.weights()
    rig.trainer.update(rig.batch())
    after = rig.weights()
    snapshot.write(tmp_path / "late")
    rig.trainer.load(tmp_path / "late")
    assert all((rig.weights()[name] == before[name]).all() for name in before)
    assert any((after[name] != before[name]).any() for name in before)


def failing_at(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    write = checkpoint.write_checkpoint

    def fail(path: Path, fill: Any) -> None:
        if path.name in names:
            raise FULL
        write(path, fill)

    monkeypatch.setattr(checkpoint, "write_checkpoint", fail)


STEPS = replace(CONFIG, max_steps=3, checkpoint=CheckpointConfig(every_steps=1, every_minutes=0, keep=9))


def test_a_failed_checkpoint_does_not_end_the_run_while_an_older_one_is_whole(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(monkeypatch, "step_000002")
    rig = make_rig(STEPS)
    rig.trainer.train()
    [told] = [line for line in rig.watcher.messages if "could not be saved" in line]
    assert told.startswith(f"checkpoints/step_000002 could not be saved: no space left for {rig.directory}: ")
    assert "a checkpoint takes" in told
    assert told.endswith(f"the run goes on, and {rig.directory}/checkpoints/step_000001 (step 1) is whole")
    assert sorted(path.name for path in (rig.directory / "checkpoints").iterdir()) == [
        *("best", "last", "step_000001", "step_000003")
    ]


def test_without_an_older_one_a_failed_checkpoint_ends_the_run(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(monkeypatch, "step_000001")
    rig = make_rig(replace(STEPS, eval=EvalConfig(baseline=False, every_steps=0, episodes=4)))
    with pytest.raises(NoSpace, match=r"a checkpoint takes .* MB; make room, or set output_dir"):
        rig.trainer.train()


def test_the_end_of_a_run_that_cannot_be_saved_is_an_error(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "last")
    rig = make_rig(STEPS)
    with pytest.raises(NoSpace, match="no space left for"):
        rig.trainer.train()
    assert len(rig.rows()) == 3 and not (rig.directory / "summary.json").exists()


def test_a_best_that_could_not_be_saved_is_none(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(STEPS, max_steps=1, eval=EvalConfig(every_steps=1, episodes=4))
    rig = make_rig(config, reward=lambda token: float(rig.trainer.state.step > 0 or token % 2))
    evaluated = rig.trainer.evaluate(rig.trainer._loop._lifecycle._eval_tasks["seeds"]).success_rate
    failing_at(monkeypatch, "best")
    monkeypatch.setattr(rig.trainer._loop._recorder, "_whole", (rig.directory, 0))
    rig.trainer.train()
    state = read_state(rig.directory / "checkpoints" / "last")
    assert evaluated < 1 and (state.best_success, state.best_step) == (None, None)
