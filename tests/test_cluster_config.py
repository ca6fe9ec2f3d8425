"""Single-controller mode: what is refused before anything starts, and how many processes there will be."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.refusals import refusal
from trainers.config import ConfigError
from trainers.config.cluster import workers_of
from trainers.config.compose import load_config
from trainers.run.directory import to_yaml

GPU = ["loader.device=cuda", "rollout.groups_per_step=24", "rollout.concurrency=48"]
TRUST = "scheduler.trust_network=true"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scheduler=kubernetes"], ["scheduler=kubernetes", "allowed: local, none, ray, slurm"]),
        (["n_nodes=0", "scheduler=ray"], ["n_nodes=0", "greater than or equal to 1"]),
        (["n_gpus=two", "scheduler=ray"], ["n_gpus=two", "integer"]),
        (["n_gpus=4"], ["n_gpus=4 with scheduler=none", "local, ray or slurm"]),
        (["n_nodes=2"], ["n_nodes=2 with scheduler=none", "local, ray or slurm"]),
        (["scheduler=local", "backend=legacy"], ["backend=legacy:", "allowed: backend=areal phase=3"]),
        (["scheduler=ray", "phase=1"], ["backend=areal phase=1:", "allowed: backend=areal phase=3"]),
        (["scheduler=slurm", "phase=2"], ["backend=areal phase=2:", "allowed: backend=areal phase=3"]),
        (["scheduler=local", "n_nodes=2"], ["n_nodes=2", "allowed: 1"]),
        (["scheduler=local", "n_gpus=2"], ["loader.device=cpu", "set loader.device=cuda"]),
        (["scheduler=local", "loader.device=cuda"], ["n_gpus=0", "set loader.device=cpu"]),
        (["scheduler=ray", "n_gpus=3", *GPU], ["n_gpus=3", "even number"]),
        (["scheduler=ray", "n_gpus=1", "inference=vllm", *GPU], ["n_gpus=1", "at least 2"]),
        (
            ["scheduler=ray", TRUST, "n_nodes=3", "rollout.groups_per_step=4"],
            ["rollout.groups_per_step=4 with 3 training processes", "multiples of 3"],
        ),
        (
            ["scheduler=ray", TRUST, "n_nodes=2", "rollout.groups_per_step=4", "rollout.concurrency=5"],
            ["rollout.concurrency=5 with 2 rollout processes", "multiples of 2"],
        ),
        (
            ["scheduler=ray", TRUST, "n_nodes=2", "rollout.groups_per_step=4", "rollout.context=last_k"],
            ["rollout.context=last_k with 2 training processes", "set rollout.context=full"],
        ),
        (["scheduler=local", "loader=unsloth", "model=smollm2"], ["loader.name=unsloth", "set loader=peft"]),
        (["scheduler=local", "areal.worker_memory_gb=0"], ["areal.worker_memory_gb=0", "greater than"]),
    ],
)
def test_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("overrides", "training", "rollout"),
    [
        (["scheduler=local"], 1, 1),
        (["scheduler=ray", TRUST, "n_nodes=2", "rollout.groups_per_step=4"], 2, 2),
        (["scheduler=local", "n_gpus=8", *GPU], 4, 4),
        (["scheduler=slurm", TRUST, "n_nodes=3", "n_gpus=8", *GPU], 12, 12),
        (["scheduler=slurm", TRUST, "n_nodes=1", "n_gpus=4", "inference=vllm", *GPU], 3, 1),
        (["scheduler=local", "inference=vllm"], 1, 1),
    ],
)
def test_processes(overrides: list[str], training: int, rollout: int) -> None:
    assert workers_of(load_config(overrides)) == (training, rollout)


@pytest.mark.parametrize(
    ("overrides", "ray_address"),
    [
        (["scheduler=slurm"], None),
        (["scheduler=ray", "n_nodes=2", "rollout.groups_per_step=4"], None),
        (["scheduler=ray"], "ray://head:10001"),
    ],
)
def test_workers_on_a_network_need_it_to_be_trusted(
    overrides: list[str], ray_address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if ray_address is not None:
        monkeypatch.setenv("RAY_ADDRESS", ray_address)
    with pytest.raises(ConfigError, match=r"^scheduler=\w+ with scheduler\.trust_network=false: .* set it to true"):
        load_config(overrides)
    assert load_config([*overrides, TRUST]).scheduler.trust_network
    for here in (["scheduler=local"], ["scheduler=ray"] if ray_address is None else []):
        load_config(here)


def test_a_run_saved_before_the_scheduler_was_a_section_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tree = asdict(load_config(["seed=7"]))
    for former in ("none", "local"):
        (run / "config.yaml").write_text(to_yaml({**tree, "scheduler": former}))
        config = load_config([f"resume={run}"])
        assert (config.seed, config.scheduler.name) == (7, former)
