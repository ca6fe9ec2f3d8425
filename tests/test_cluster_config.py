"""Single-controller mode: what is refused before anything starts, and how many processes there will be."""

import pytest

from tests.refusals import refusal
from trainers.config.cluster import workers_of
from trainers.config.compose import load_config

GPU = ["loader.device=cuda", "rollout.groups_per_step=24", "rollout.concurrency=48"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scheduler=kubernetes"], ["scheduler=kubernetes", "'none', 'local', 'ray' or 'slurm'"]),
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
            ["scheduler=ray", "n_nodes=3", "rollout.groups_per_step=4"],
            ["rollout.groups_per_step=4 with 3 training processes", "multiples of 3"],
        ),
        (
            ["scheduler=ray", "n_nodes=2", "rollout.groups_per_step=4", "rollout.concurrency=5"],
            ["rollout.concurrency=5 with 2 rollout processes", "multiples of 2"],
        ),
        (
            ["scheduler=ray", "n_nodes=2", "rollout.groups_per_step=4", "rollout.context=last_k"],
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
        (["scheduler=ray", "n_nodes=2", "rollout.groups_per_step=4"], 2, 2),
        (["scheduler=local", "n_gpus=8", *GPU], 4, 4),
        (["scheduler=slurm", "n_nodes=3", "n_gpus=8", *GPU], 12, 12),
        (["scheduler=slurm", "n_nodes=1", "n_gpus=4", "inference=vllm", *GPU], 3, 1),
        (["scheduler=local", "inference=vllm"], 1, 1),
    ],
)
def test_processes(overrides: list[str], training: int, rollout: int) -> None:
    assert workers_of(load_config(overrides)) == (training, rollout)
