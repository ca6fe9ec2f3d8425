"""Run by torchrun: what each phase computes on one batch, written by the first process as `results.pt`.

torchrun --nproc_per_node=2 tests/process_group_learning.py <model directory> <directory of the results>
"""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainers.areal.process import prepare_process
from trainers.config import (
    ArealConfig,
    LoaderConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    TrainConfig,
)
from trainers.distributed.process_group import ProcessGroup
from trainers.distributed.torchrun import process_group_of_environment
from trainers.protocol import Batch

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraConfig(enabled=True, r=4)},
    "kl_decoupled": {"loss": LossConfig(decoupled=True, behaviour_weight_cap=50.0, kl_coefficient=0.1)},
    "text": {},
}
OFFLOADED = {
    "lora": LoraConfig(enabled=True, r=4),
    "loader": LoaderConfig(gradient_checkpointing=True, offload_activations=True),
}
"""The variant `lora`, which it is compared with, in phase 2."""
UPDATES = 2


def configuration(weights: Path, variant: str, phase: int) -> TrainConfig:
    return replace(
        TrainConfig(
            backend="areal",
            phase=phase,  # type: ignore[arg-type]
            model=ModelConfig(path=str(weights), freeze_vision=False),
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
            rollout=RolloutConfig(group_size=4, groups_per_step=4),
            areal=ArealConfig(packed_tokens=256),
        ),
        **(OFFLOADED if variant == "offloaded" else VARIANTS[variant]),
    )


def batch_of(policy: Any, variant: str) -> Batch:
    """Three groups of three, three and two episodes; every row with other images, or without any in `text`."""
    from tests.policy_rows import row
    from trainers.grpo.advantages import group_advantages

    rows = []
    for number, size in enumerate((3, 3, 2)):
        for member in range(size):
            seed = 10 * number + member
            turns = [(64 + 32 * (seed % 2), 64, 3 + member), (64, 64 + 32 * (member % 2), 5)][: 1 + (seed + member) % 2]
            if variant == "text":
                turns = [(0, 0, 4 + seed % 5)]
            made = row(policy, seed, turns, episode_id=f"{number}-{member}")
            rows.append(replace(made, group_id=f"g{number}", reward=float(member % 2)))
    return group_advantages(rows, TrainConfig().advantage).batch


def computed(learner: Any, batch: Batch) -> dict[str, Any]:
    record = learner.loss_and_gradients(batch)
    updates = [dict(learner.update(batch).metrics) for _ in range(UPDATES)]
    return {"metrics": dict(record.metrics), "gradients": dict(record.gradients), "updates": updates}


def phase_2(weights: Path, variant: str, process_group: ProcessGroup) -> dict[str, Any]:
    from trainers.areal.train.phase2_learner import Phase2Learner
    from trainers.components import build_policy

    config = configuration(weights, variant, 2)
    policy = build_policy(config, sharded=True)
    batch = batch_of(policy, variant)
    with closing(Phase2Learner(policy, config, process_group)) as learner:
        results = computed(learner, batch)
        return {**results, "weights": {k: v.clone() for k, v in learner.trained_weights().items()}}


def phase_3(weights: Path, variant: str, process_group: ProcessGroup, directory: Path) -> dict[str, Any]:
    from tests.legacy_rig import TASKS, OneTokenRunner, Watcher, squares
    from trainers.areal.trainer import AReaLGRPOTrainer
    from trainers.components import Components, build_policy

    config = configuration(weights, variant, 3)
    policy = build_policy(config)
    batch = batch_of(policy, variant)
    held_out = {"seeds": TASKS, "templates": TASKS[:1]}
    components = Components(policy, squares, lambda engine: OneTokenRunner(policy, engine), TASKS, held_out)  # type: ignore
    with closing(AReaLGRPOTrainer(config, directory, Watcher(), components, process_group)) as trainer:
        results = computed(trainer, batch)
        trainer.save(directory / "checkpoint")
        actor = trainer._trainer._actor  # type: ignore[attr-defined]
        actor.export_stats()  # of what was before
        first = [index for index, row in enumerate(batch.trajectories) if row.group_id == "g0"]
        trainer.update(Batch([batch.trajectories[i] for i in first], [batch.advantages[i] for i in first]))
        results["areal_stats"] = actor.export_stats()
    return results


def main(weights: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    with process_group_of_environment(configuration(weights, "full", 2)) as process_group:
        own = directory / f"rank{process_group.rank}"
        prepare_process(own)
        results = {}
        for variant in VARIANTS:
            results[variant, 2] = phase_2(weights, variant, process_group)
            results[variant, 3] = phase_3(weights, variant, process_group, own / variant)
        results["offloaded", 2] = phase_2(weights, "offloaded", process_group)
        if process_group.rank == 0:
            torch.save(results, directory / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
