"""Torch threads are divided between the thread that samples and the one that trains."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainers.config import TrainConfig

CONFIG = TrainConfig()


def shares(config: TrainConfig) -> tuple[int, int] | None:
    pytest.importorskip("areal")
    from trainers.areal.rollout.thread_shares import thread_shares

    divided = thread_shares(config)
    return divided and (divided.sampling, divided.training)


@pytest.mark.parametrize(
    ("threads", "bound", "expected"),
    [(1, 2, (1, 1)), (2, 2, (1, 1)), (3, 2, (1, 2)), (8, 1, (4, 4)), (1, 0, (1, 1)), (2, 0, (1, 2)), (8, 0, (4, 5))],
)
def test_the_two_have_half_each_and_training_a_little_more_where_they_take_turns(
    threads: int, bound: int, expected: tuple[int, int]
) -> None:
    config = replace(CONFIG, threads=threads, rollout=replace(CONFIG.rollout, max_staleness=bound))
    assert shares(config) == expected


def test_whoever_computes_alone_keeps_all() -> None:
    assert shares(replace(CONFIG, inference=replace(CONFIG.inference, name="vllm"))) is None
    assert shares(replace(CONFIG, loader=replace(CONFIG.loader, device="cuda"))) is None


@pytest.mark.slow
def test_a_worker_divides_them(tmp_path: Path) -> None:
    pytest.importorskip("areal")
    from trainers.areal.process import prepare_process
    from trainers.areal.rollout.rollout_worker import RolloutWorker
    from trainers.components import build_components
    from trainers.config.compose import load_config

    prepare_process(tmp_path)
    config = load_config(["experiment=quick", "threads=2", "rollout.max_staleness=0"])
    components = build_components(config)
    worker = RolloutWorker(config, components, tmp_path, components.policy)
    worker.engine.initialize(train_data_parallel_size=1)
    before = torch.get_num_threads()

    async def of_the_loop() -> tuple[str, int]:
        torch.ones(1 << 16).add_(1)
        return threading.current_thread().name, torch.get_num_threads()

    try:
        worker.open()
        name, sampling = worker.engine.run(of_the_loop())
        assert name != threading.current_thread().name
        assert (sampling, torch.get_num_threads()) == (1, 2)
    finally:
        worker.close()
        torch.set_num_threads(before)
