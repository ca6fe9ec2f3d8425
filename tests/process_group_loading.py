"""Run by torchrun: what loading and sharding costs every process, and whether the weights are those of a whole load.

torchrun --nproc_per_node=2 tests/process_group_loading.py <model directory> <directory of the results>
"""

import gc
import json
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.policy_rows import row
from trainers.areal.process import prepare_process
from trainers.areal.train.phase2_learner import Phase2Learner
from trainers.components import build_policy
from trainers.config import LoraConfig, LossConfig, ModelConfig, TrainConfig
from trainers.distributed.process_group import ProcessGroup
from trainers.distributed.sharded_tensors import whole
from trainers.distributed.torchrun import process_group_of_environment
from trainers.protocol import Batch, TrainerState

EVERY_S = 0.002


def memory() -> int:
    """Bytes of this process's own: not the pages of files, which the system takes back when it likes."""
    kilobytes = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes is not None
    return 1024 * int(kilobytes[1])


@contextmanager
def measured() -> Iterator[SimpleNamespace]:
    """`peak` is by how many bytes this process grew inside, at most."""
    before, result, over = memory(), SimpleNamespace(peak=0), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            result.peak = max(result.peak, memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield result
    finally:
        over.set()
        watcher.join()


def configuration(weights: Path, *, lora: bool) -> TrainConfig:
    return TrainConfig(
        backend="areal",
        phase=2,
        model=ModelConfig(path=str(weights), dtype="bfloat16"),
        lora=LoraConfig(enabled=lora, r=4),
        loss=LossConfig(kl_coefficient=0.1),
    )


def loaded(weights: Path, process_group: ProcessGroup, directory: Path, *, lora: bool, sharded: bool) -> dict[str, Any]:
    config = configuration(weights, lora=lora)
    with measured() as growth:
        policy = build_policy(config, sharded=sharded)
        held = [weakref.ref(p) for p in [*policy.model.parameters(), *(policy.reference_weights or {}).values()]]
        learner = Phase2Learner(policy, config, process_group)
    with closing(learner):
        gc.collect()
        kept = [list(parameter.shape) for ref in held if (parameter := ref()) is not None]
        dtypes = sorted({f"{p.requires_grad} {p.dtype}" for p in policy.model.parameters()})
        gathered = {name: whole(parameter) for name, parameter in policy.model.named_parameters()}
        spec = LoraSpec(r=4, seed=config.seed) if lora else None
        expected = dict(load_policy(str(weights), dtype="bfloat16", lora=spec).model.named_parameters())
        wrong = [name for name, p in expected.items() if not torch.equal(p.detach().float(), gathered[name].float())]
        del gathered, expected
        batch = Batch([row(policy, seed, [(64, 64, 3)]) for seed in range(4)], [1.0, -1.0, 0.5, -0.5])
        reference = float(learner.update(batch).metrics["kl"])  # of the first weights: 0 before the first step
        learner.snapshot(TrainerState()).write(directory / "checkpoint")
        process_group.all_gather(None)  # the first process has written it
        with measured() as again:
            learner.load(directory / "checkpoint")
        moved = float(learner.loss_and_gradients(batch).metrics["kl"])
    held_as = {"kept": kept, "dtypes": dtypes, "wrong": wrong}
    return {"peak": growth.peak, "resumed": again.peak, **held_as, "kl": reference, "kl_after": moved}


def main(weights: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    with process_group_of_environment(configuration(weights, lora=True)) as process_group:
        prepare_process(directory / f"rank{process_group.rank}")
        loaded(weights, process_group, directory, lora=True, sharded=True)  # what is imported and set up once
        results = {
            name: loaded(weights, process_group, directory, lora=lora, sharded=sharded)
            for name, lora, sharded in (("lora", True, True), ("full", False, True), ("whole", True, False))
        }
        (directory / f"{process_group.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
