"""Two real processes: they compute what one does, train together, and stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.process_group_learning import UPDATES, VARIANTS
from tests.tiny_random import build

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=quick", "eval.episodes=4", "threads=1", "rollout.group_size=4", "run_name=run"]


def launch(processes: int, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*line, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    return text


def test_processes_hear_each_other_and_fail_together() -> None:
    lines = finished(launch(3, ROOT / "tests" / "process_group_talking.py")).splitlines()
    heard = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines if line[:1].isdigit()}
    errors = "'ValueError(one broke) together=True', '{} together=True', 'KeyboardInterrupt() together=True', False"
    for rank, told in heard.items():
        own = "UnsendableError(secret)" if rank == "1" else "RuntimeError(UnsendableError: secret)"
        assert told == f"[[0, 10, 20], 5, [0, 1, 4], {errors.format(own)}]"
    assert len(heard) == 3


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[Any, Any], Path]:
    """What one process and what two computed, and the directory of the two."""
    base = tmp_path_factory.mktemp("processes")
    weights = build(base / "model")
    results = []
    for processes in (1, 2):
        directory = base / str(processes)
        directory.mkdir()
        finished(launch(processes, ROOT / "tests" / "process_group_learning.py", weights, directory))
        results.append(torch.load(directory / "results.pt", weights_only=True))
    return results[0], results[1], directory


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    a, b = (torch.cat([tensors[name].double().flatten() for name in one]) for tensors in (one, two))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("phase", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_compute_what_one_computes(computed: Any, variant: str, phase: int) -> None:
    one, two = (results[variant, phase] for results in computed[:2])
    assert one["metrics"]["tokens"] > 20
    # Advantages of these groups are about 1 in size, and so is the loss with all its terms positive: its L1 scale.
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], abs=1e-6)
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert difference(one["gradients"], two["gradients"]) < 1e-5
    for before, after in zip(one["updates"], two["updates"], strict=True):
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-4)
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-5)
    assert len(one["updates"]) == UPDATES


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_end_with_the_weights_of_one(computed: Any, variant: str) -> None:
    one, two, _ = computed
    assert difference(one[variant, 2]["weights"], two[variant, 2]["weights"]) < 1e-5


def test_layer_inputs_in_main_memory_change_no_weight_of_a_sharded_model(computed: Any) -> None:
    for results in computed[:2]:
        weights, offloaded = (results[variant, 2]["weights"] for variant in ("lora", "offloaded"))
        assert all(torch.equal(weight, offloaded[name]) for name, weight in weights.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_process_without_a_group_of_its_own_does_not_keep_the_others_waiting(computed: Any, variant: str) -> None:
    for results in computed[:2]:
        stats = results[variant, 3]["areal_stats"]  # after an update on one group
        assert stats["ppo_actor/update/update_successful"] == 1


def test_the_first_process_alone_writes_checkpoints(computed: Any) -> None:
    directory: Path = computed[2]
    assert (directory / "rank0" / "lora" / "checkpoint" / "manifest.json").is_file()
    assert list(directory.glob("rank1/*/checkpoint")) == []


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def test_two_processes_train_and_one_goes_on(tmp_path: Path) -> None:
    train = [ROOT / "train.py", *QUICK, f"output_dir={tmp_path / 'outputs'}"]
    text = finished(launch(2, *train, "phase=3", "max_steps=2", "checkpoint.every_steps=1", cwd=tmp_path))
    run = tmp_path / "outputs" / "run"
    assert text.count("Done after 2 steps") == 1
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert [row["step"] for row in rows(run, "metrics.jsonl")] == [1, 2]
    assert all(row["groups_kept"] <= 4 and row["staleness_max"] <= 2 for row in rows(run, "metrics.jsonl"))
    assert {row["episodes"] + row["infra_errors"] for row in rows(run, "eval.jsonl")} == {4}
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    state = json.loads((run / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert state["data_position"] >= 4 and state["data_position"] % 2 == 0
    assert {path.name for path in (run / "episodes").glob("*.jsonl")} == {"0.jsonl", "1.jsonl", "steps.jsonl"}

    text = finished(launch(1, *train, "phase=2", "max_steps=3", f"resume={run}", "run_name=more", cwd=tmp_path))
    assert "at step 2" in text
    assert [row["step"] for row in rows(run.parent / "more", "metrics.jsonl")] == [3]


def test_ctrl_c_stops_both_processes_and_keeps_what_there_is(tmp_path: Path) -> None:
    train = [ROOT / "train.py", *QUICK, f"output_dir={tmp_path}", "phase=2", "max_steps=500", "eval.baseline=false"]
    process = launch(2, *train, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert f"go on with: torchrun --nproc_per_node=2 {ROOT / 'train.py'} resume=" in text, text
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert 1 <= state["step"] == len(rows(tmp_path / "run", "metrics.jsonl"))


def test_a_configuration_that_two_processes_cannot_train_is_one_line(tmp_path: Path) -> None:
    process = launch(2, ROOT / "train.py", "phase=1", f"output_dir={tmp_path / 'outputs'}", cwd=tmp_path)
    text, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert text.count("error: backend=areal phase=1 with 2 processes: allowed: backend=areal phase=2 or phase=3") == 1
    assert not (tmp_path / "outputs").exists()
