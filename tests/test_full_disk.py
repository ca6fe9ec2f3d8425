"""A disk with no room left: one line, whole checkpoints, and nothing that waits for it."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cua_agent.trajectory import Outcome, Trajectory
from trainers.command import train
from trainers.config import LoggingConfig
from trainers.protocol import Batch, TrainResult
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.checkpoint_files import verify_checkpoint
from trainers.run.disk import full_in_words, is_full
from trainers.run.metrics import MetricsWriter, StepMetrics, open_trackers

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
MEGABYTES = 28
"""Room for one checkpoint of the built-in model and not for a second."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def batch() -> Batch:
    none = [np.zeros(2000, dtype) for dtype in (np.int64, np.int32, np.float32, np.int32)]
    return Batch([Trajectory(*none, [], 0.0, Outcome.FAILURE, "t", "g", "e", 0)], [1.0])


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (
            RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0"),
            True,
        ),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("x"), False),
        (KeyboardInterrupt("No space left on device"), False),
    ],
)
def test_a_full_disk_is_recognised_whoever_reports_it(error: BaseException, full: bool) -> None:
    assert is_full(error) is full
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert is_full(wrapped) is full


def test_the_words_say_what_is_free_and_what_a_checkpoint_takes(tmp_path: Path) -> None:
    assert "a checkpoint takes" not in full_in_words(tmp_path)
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best" / "model.safetensors").write_bytes(bytes(2_500_000))
    assert "MB free, a checkpoint takes 2.5 MB; those in it are whole" in full_in_words(tmp_path)


def test_a_failure_on_a_full_disk_is_one_line_without_a_log(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trainer:
        def train(self) -> TrainResult:
            fill(disk)
            (disk / "run" / "metrics.jsonl").write_text("{}\n")
            raise AssertionError("the disk is not full")

        def close(self) -> None: ...

    monkeypatch.setattr("trainers.api.build_trainer", lambda *_: Trainer())
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    assert train.main([f"output_dir={disk}", "run_name=run"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: no space left for {disk / 'run'}: 0.0 MB free; make room, or set output_dir (no ")
    assert error.count("\n") == 1
    assert not (disk / "run" / "error.log").exists()


def test_a_run_on_a_full_disk_is_refused_and_leaves_no_directory(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk)
    monkeypatch.setattr(train, "prepare_process", lambda _: None)
    assert train.main([f"output_dir={disk}", "run_name=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: output_dir={disk}: cannot ")
    assert error.endswith("No space left on device\n") and error.count("\n") == 1
    assert not (disk / "run").exists()


def test_curves_that_cannot_be_written_are_told_once_and_hold_nothing_up(disk: Path, tmp_path: Path) -> None:
    told: list[str] = []
    writer = MetricsWriter(tmp_path / "run", open_trackers(LoggingConfig(), disk, {}), told.append)
    writer.step(StepMetrics(step=1, policy_version=1))
    fill(disk)
    for step in range(2, 300):  # more than any buffer holds
        writer.step(StepMetrics(step=step, policy_version=step))
    writer.close()
    assert len(told) == 1
    assert told[0].startswith("TensorBoard gets no further metrics: ") and "No space left" in told[0]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 299


def test_a_batch_that_cannot_be_recorded_leaves_nothing_behind(disk: Path) -> None:
    store = TrajectoryStore(disk / "trajectories", keep=1)
    store.record(1, batch())
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        store.record(2, batch())
    assert [path.name for path in store.directory.iterdir()] == ["step_000001.safetensors"]
    assert len(store.read(1).trajectories) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["legacy", "areal"])
def test_checkpoints_that_do_not_fit_are_told_and_the_run_ends_in_one_line(backend: str, disk: Path) -> None:
    small = ["max_steps=3", "rollout.groups_per_step=1", "rollout.group_size=2", "rollout.max_refills=0"]
    often = ["eval.baseline=false", "eval.every_steps=0", "eval.episodes=2", "checkpoint.every_steps=1", "run_name=run"]
    done = subprocess.run(
        [*TRAIN, f"backend={backend}", *small, *often, f"output_dir={disk}"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"checkpoints/step_000002 could not be saved: no space left for {disk / 'run'}: " in done.stdout
    assert "(step 1) is whole" in done.stdout
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: no space left for {disk / 'run'}: ")
    assert "a checkpoint takes 14." in last
    assert len((disk / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    (kept,) = (disk / "run" / "checkpoints").iterdir()
    verify_checkpoint(kept)
