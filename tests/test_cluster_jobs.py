"""What AReaL's schedulers are asked for, by its own controllers."""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import load_config

pytest.importorskip("areal")
pytestmark = pytest.mark.slow

GPU = ["loader.device=cuda", "rollout.groups_per_step=24", "rollout.concurrency=48", "areal.worker_memory_gb=64"]
TRUST = "scheduler.trust_network=true"


class EnoughError(Exception):
    """The scheduler heard what it wanted to."""


class Listener:
    """A scheduler that notes the job it is given, and starts nothing."""

    def create_workers(self, job: Any) -> list[str]:
        self.job = job
        raise EnoughError


def jobs(config: TrainConfig, directory: Path) -> tuple[Any, Any]:
    """The jobs of the training and of the rollout controller."""
    from trainers.areal.cluster.controllers import ActorController, PlayerController
    from trainers.areal.cluster.worker_engines import WorkerActor, WorkerEngine
    from trainers.areal.cluster.worker_specs import controller_config

    native = controller_config(config, directory)
    training, playing = Listener(), Listener()
    with pytest.raises(EnoughError):
        ActorController(WorkerActor, native.actor, training).initialize(role="actor", ft_spec=None)
    with pytest.raises(EnoughError):
        PlayerController(WorkerEngine, native.rollout, playing).initialize(role="rollout", server_args={})
    return training.job, playing.job


@pytest.mark.parametrize(
    ("overrides", "training", "rollout", "gpu", "memory", "host"),
    [
        (["scheduler=local"], 1, 1, 0, 4, " --host 127.0.0.1"),
        (["scheduler=ray", TRUST, "n_nodes=2", "rollout.groups_per_step=4"], 2, 2, 0, 4, ""),
        (["scheduler=slurm", TRUST, "n_nodes=3", "n_gpus=8", *GPU], 12, 12, 1, 64, ""),
        (["scheduler=ray", "n_gpus=4", "inference=vllm", *GPU], 3, 1, 1, 64, " --host 127.0.0.1"),
    ],
)
def test_jobs(
    tmp_path: Path, overrides: list[str], training: int, rollout: int, gpu: int, memory: int, host: str
) -> None:
    actor, player = jobs(load_config([*overrides, "threads=3"]), tmp_path)
    assert (actor.role, actor.replicas, player.role, player.replicas) == ("actor", training, "rollout", rollout)
    for spec in (*actor.tasks, *player.tasks):
        assert (spec.cpu, spec.gpu, spec.mem) == (3, gpu, memory)
        assert spec.cmd.endswith(f"-m trainers.areal.cluster.worker_process{host}")
        assert (spec.env_vars["OMP_NUM_THREADS"], spec.env_vars["GOMP_SPINCOUNT"]) == ("3", "10000")


def test_workers_are_handed_the_whole_configuration(tmp_path: Path) -> None:
    from areal.infra.rpc.serialization import deserialize_value, serialize_value

    from trainers.areal.cluster.worker_specs import controller_config, run_config

    config = load_config(["scheduler=local", "env.tasks=[settings,clock]", "optim.betas=[0.5,0.75]"])
    native = controller_config(config, tmp_path)
    for section in (native.actor, native.rollout):
        received = deserialize_value(serialize_value(section))
        assert type(received) is type(section)
        assert run_config(received.run) == config
    assert native.actor.backend == "fsdp:d1"
    assert native.rollout.backend == "vllm:d1"


def fake_sbatch(directory: Path) -> None:
    """A Slurm whose `sbatch` only says that it took the job."""
    directory.mkdir()
    for name, answer in (("sbatch", "Submitted batch job 7"), ("squeue", ""), ("scancel", "")):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho {answer}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)


def test_slurm_is_asked_for_whole_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.areal.cluster.schedulers import opened_scheduler
    from trainers.areal.cluster.worker_specs import controller_config

    fake_sbatch(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    config = load_config(["scheduler=slurm", TRUST, "n_nodes=3", "n_gpus=8", "threads=4", *GPU])
    native = controller_config(config, tmp_path)
    Path(native.cluster.fileroot).mkdir()
    job, _ = jobs(config, tmp_path)
    with opened_scheduler(config, native) as scheduler:
        scheduler.create_workers(job)
    [script] = tmp_path.rglob("actor.sh")
    lines = script.read_text()
    for wanted in ("--nodes=3", "--ntasks-per-node=4", "--cpus-per-task=4", "--gres=gpu:4", "cluster.worker_process"):
        assert wanted in lines, lines


@pytest.mark.parametrize("scheduler", ["local", "ray"])
def test_gpus_that_are_not_there_are_one_line(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from trainers.areal.cluster.schedulers import check_machine

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = load_config([f"scheduler={scheduler}", "n_gpus=2", *GPU])
    with pytest.raises(ConfigError, match=f"n_gpus=2 with scheduler={scheduler}: .*"):
        check_machine(config)
    check_machine(replace(config, n_gpus=0))
