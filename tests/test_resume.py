"""A run goes on across backends and phases: new settings act, moments and counters are kept, its lineage is whole."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cua_agent.models.loaders import load_policy
from tests.legacy_rig import CONFIG, TASKS, OneTokenRunner, Watcher, squares
from tests.tiny_random import build
from trainers.components import Components
from trainers.config import CheckpointConfig, EvalConfig, ModelConfig, TrainConfig
from trainers.legacy.trainer import CUAGRPOTrainer
from trainers.protocol import EpisodeSpec
from trainers.run.checkpoint_files import read_state
from trainers.run.directory import create_run_directory
from trainers.run.lineage import evaluation_rows, lineage_of, training_rows
from trainers.run.resuming import described, starting_point

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


def train(
    weights: Path, config: TrainConfig, hook: Callable[[EpisodeSpec], None] = lambda _: None
) -> tuple[Path, list[str]]:
    """The directory of a run, as the command makes it, and what was said. `hook` may raise before an episode."""
    from trainers.areal.trainer import AReaLGRPOTrainer

    config = replace(config, model=ModelConfig(path=str(weights), freeze_vision=False))
    start = starting_point(config.resume) if config.resume else None
    directory = create_run_directory(config, resumed=described(start) if start else None)
    policy, watcher = load_policy(str(weights)), Watcher()
    held_out: Any = {"seeds": TASKS, "templates": TASKS[:1]}
    components = Components(policy, squares, lambda engine: OneTokenRunner(policy, engine, hook=hook), TASKS, held_out)
    trainer = CUAGRPOTrainer if config.backend == "legacy" else AReaLGRPOTrainer
    with closing(trainer(config, directory, watcher, components)) as running:
        running.train()
    return directory, watcher.messages


def optimiser(directory: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(directory / "checkpoints" / "last" / "optimizer.pt", weights_only=True)
    return saved["optimizer"]


def test_a_run_goes_through_every_backend_and_back(weights: Path, tmp_path: Path) -> None:
    backend: list[tuple[str, int]] = [("legacy", 3), ("areal", 1), ("areal", 2), ("areal", 3), ("legacy", 3)]
    rates = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    former: Path | None = None
    for step, ((name, phase), rate) in enumerate(zip(backend, rates, strict=True), start=1):
        optim = replace(CONFIG.optim, learning_rate=rate, betas=(0.8, 0.9), weight_decay=rate)
        config = replace(
            CONFIG,
            backend=name,
            phase=phase,
            max_steps=step,
            optim=optim,
            resume=former and str(former),
            output_dir=str(tmp_path),
        )
        directory, said = train(weights, config)
        assert said == ([f"resumed from {former}/checkpoints/last at step {step - 1}"] if former else [])
        former = directory
        saved = optimiser(directory)
        (group,) = saved["param_groups"]
        assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (rate, (0.8, 0.9), rate)
        assert {float(moments["step"]) for moments in saved["state"].values()} == {float(step)}
        assert (directory / "checkpoints" / "best" / "manifest.json").is_file()
    lineage = lineage_of(directory)
    rows = training_rows(lineage)
    assert [row["step"] for row in rows] == [row["policy_version"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    assert [row["staleness_max"] for row in rows] == [0] * 5
    of_what_happened = ("outcome/", "advantage/", "groups_with_successes/")
    assert len({tuple(sorted(key for key in row if not key.startswith(of_what_happened))) for row in rows}) == 1
    assert [(row["split"], row["step"]) for row in evaluation_rows(lineage) if row["split"] == "seeds"] == [
        ("seeds", step) for step in range(6)
    ]


@pytest.mark.parametrize("name", ["legacy", "areal"])
def test_baseline_and_best_begin_anew_when_evaluations_measure_something_else(
    weights: Path, tmp_path: Path, name: str
) -> None:
    config = replace(CONFIG, backend=name, phase=1, max_steps=1, output_dir=str(tmp_path))
    former, _ = train(weights, config)
    changed = replace(config, eval=EvalConfig(every_steps=0, episodes=6), max_steps=2, resume=str(former))
    directory, said = train(weights, changed)
    assert said[1] == "evaluations measure something else than before (eval.episodes): baseline and best begin anew"
    evaluations = [json.loads(line) for line in (directory / "eval.jsonl").read_text().splitlines()]
    assert [(e["step"], e["episodes"]) for e in evaluations if e["split"] == "seeds"] == [(1, 6), (2, 6)]
    state = json.loads((directory / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert state["best_step"] in (1, 2)
    assert state["eval_success_start"] == evaluations[0]["success_rate"]


@pytest.mark.parametrize(("backend", "phase"), [("legacy", 3), ("areal", 1), ("areal", 3)])
def test_a_resumed_run_evaluates_at_the_same_steps_and_its_checkpoints_know_it(
    weights: Path, tmp_path: Path, backend: str, phase: int
) -> None:
    config = replace(
        CONFIG,
        backend=backend,
        phase=phase,
        max_steps=1,
        eval=EvalConfig(every_steps=2, episodes=4, baseline=False),
        output_dir=str(tmp_path),
    )
    former, _ = train(weights, config)
    longer = replace(config, max_steps=4, checkpoint=CheckpointConfig(every_steps=1, keep=9), resume=str(former))
    directory, _ = train(weights, longer)
    evaluations = [json.loads(line) for line in (directory / "eval.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evaluations if e["split"] == "seeds"] == [2, 4]
    success = {e["step"]: e["success_rate"] for e in evaluations if e["split"] == "seeds"}
    state = read_state(directory / "checkpoints" / "step_000002")
    assert state.best_success == max(success[2], read_state(former / "checkpoints" / "last").best_success or 0.0)
    assert not list((directory / "areal").rglob("*.safetensors"))  # AReaL exports nothing besides


@pytest.mark.parametrize(("backend", "phase"), [("legacy", 3), ("areal", 1), ("areal", 3)])
def test_an_evaluation_that_was_broken_off_is_made_when_the_run_goes_on(
    weights: Path, tmp_path: Path, backend: str, phase: int
) -> None:
    held_out = EvalConfig(every_steps=1, episodes=4, baseline=False)
    config = replace(CONFIG, backend=backend, phase=phase, max_steps=2, eval=held_out, output_dir=str(tmp_path))

    def hook(spec: EpisodeSpec) -> None:
        if spec.group_id.startswith("eval"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(weights, config, hook)
    (former,) = tmp_path.iterdir()
    assert not (former / "eval.jsonl").exists()
    directory, _ = train(weights, replace(config, resume=str(former)))
    evaluations = [json.loads(line) for line in (directory / "eval.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evaluations if e["split"] == "seeds"] == [1, 2]
