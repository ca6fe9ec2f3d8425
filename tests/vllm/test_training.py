"""Training on a real vLLM server, on both backends: every recorded token has the log-probability that the version
which it names gives it, and a restart of the server costs time only."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import TINY_WEIGHTS
from cua_agent.trajectory import Trajectory
from tests.vllm.reference import TOLERANCE, full_logprobs
from trainers.config.compose import load_config
from trainers.parity.__main__ import main as parity
from trainers.parity.ladder import read_ladder
from trainers.parity.rungs import LADDER
from trainers.protocol import Trainer
from trainers.rollouts.trajectory_store import TrajectoryStore
from trainers.run.progress import open_progress

LORA = ["lora.enabled=true", "lora.r=8", "optim.learning_rate=1e-3"]
BACKENDS = ["backend=legacy", "backend=areal phase=1", "backend=areal phase=2", "backend=areal phase=3"]


def train(url: str, directory: Path, steps: int, *overrides: str) -> list[dict[str, Any]]:
    """Train with small steps that keep all their batches and weights; the rows of `metrics.jsonl`."""
    config = load_config(
        [
            "inference=vllm",
            f"inference.servers=[{url}]",
            f"max_steps={steps}",
            "rollout.groups_per_step=2",
            "rollout.group_size=4",
            "eval.episodes=2",
            "eval.baseline=false",
            f"checkpoint.keep={steps}",
            "checkpoint.every_steps=1",
            f"logging.save_trajectories={steps}",
            *(["rollout.max_staleness=1"] if "backend=areal" in overrides else []),
            *overrides,
        ]
    )
    with closing(_trainer(config, directory)) as trainer:
        assert trainer.train().steps == steps
    return rows_of(directory)


def _trainer(config: Any, directory: Path) -> Trainer:
    if config.backend == "legacy":
        from trainers.legacy.trainer import CUAGRPOTrainer

        return CUAGRPOTrainer(config, directory, open_progress(config.max_steps))
    pytest.importorskip("areal")
    from trainers.areal.trainer import AReaLGRPOTrainer

    return AReaLGRPOTrainer(config, directory, open_progress(config.max_steps))


def rows_of(directory: Path) -> list[dict[str, Any]]:
    metrics = directory / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def check_tokens(directory: Path, bound: int) -> Counter[int]:
    """Compare every recorded token with a full forward pass of its own version; how many there are of each staleness.

    The weights of version n are those of the checkpoint that was written with it.
    """
    weights = {0: load_policy("tiny")}
    found: Counter[int] = Counter()
    for row in rows_of(directory):
        served = row["policy_version"] - 1
        for trajectory in TrajectoryStore(directory / "trajectories", 1).read(row["step"]).trajectories:
            assert _error(trajectory, weights) < TOLERANCE
            found.update((served - trajectory.versions[trajectory.loss_mask == 1]).tolist())
        weights[row["policy_version"]] = load_policy(str(directory / "checkpoints" / f"step_{row['step']:06d}"))
    assert found and min(found) >= 0 and max(found) <= bound
    return found


def _error(trajectory: Trajectory, weights: dict[int, PolicyModel]) -> float:
    ids = trajectory.input_ids.tolist()
    sampled = trajectory.loss_mask.nonzero()[0]
    errors = [0.0]
    for version in set(trajectory.versions[sampled].tolist()):
        logprobs = full_logprobs(weights[version], ids, trajectory.images, 1.0)
        places = [place for place in sampled if trajectory.versions[place] == version]
        errors += [abs(float(logprobs[place - 1, ids[place]]) - float(trajectory.logprobs[place])) for place in places]
    return max(errors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_live_adapters(server: Any, tmp_path: Path, backend: str) -> None:
    rows = train(server.url, tmp_path, 3, *backend.split(), *LORA)
    found = check_tokens(tmp_path, bound=0 if backend == "backend=legacy" else 1)
    assert backend == "backend=legacy" or found[1] > 0  # rollouts went on while the policy learnt
    assert [row["policy_version"] for row in rows] == [1, 2, 3]
    assert sum(row["episodes_infra_error"] for row in rows) == 0
    assert server.adapters() == set()


def test_a_restart_in_the_middle_loses_no_step(server: Any, tmp_path: Path) -> None:
    def restart() -> None:
        while not rows_of(tmp_path):
            time.sleep(0.1)
        server.restart().join()

    restarting = threading.Thread(target=restart)
    restarting.start()
    rows = train(server.url, tmp_path, 5, "backend=areal", "phase=3", *LORA)
    restarting.join()
    server.wait()
    assert [row["policy_version"] for row in rows] == [1, 2, 3, 4, 5]
    assert sum(row["episodes_infra_error"] for row in rows) == 0
    assert max(row["step_s"] for row in rows) > 3 * min(row["step_s"] for row in rows)  # it was waited for
    check_tokens(tmp_path, bound=1)
    assert server.adapters() == set()


def test_live_full_weights(server: Any, tmp_path: Path) -> None:
    try:
        train(server.url, tmp_path, 3, "backend=areal", "phase=3")
        check_tokens(tmp_path, bound=1)
    finally:
        server.reload(TINY_WEIGHTS)


def test_the_ladder_holds_on_what_the_server_sampled(server: Any, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "parity"
    assert parity(["record", "--out", str(run), "inference=vllm", f"inference.servers=[{server.url}]", *LORA]) == 0
    assert parity(["ladder", "--recording", str(run), "--out", str(out)]) == 0
    climbed = read_ladder(out / "ladder.json")
    assert all(climbed.of(phase, rung) for phase in (1, 2, 3) for rung in LADDER)
