"""One checkpoint, written where the run writes, and read back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trainers.doctor.context import Context
from trainers.doctor.devices import model_shape
from trainers.doctor.finding import Finding, error, not_checked, ok
from trainers.doctor.sampling import nudged
from trainers.doctor.storage import checkpoint_bytes, nearest_directory, size_in_words
from trainers.protocol import TrainerState

_LARGEST = 2e9
"""Bytes of a checkpoint that are written for a trial."""


def save_and_load(context: Context) -> Finding:
    """What is trained, optimiser and counters: saved, changed, loaded, and the same again."""
    from trainers.grpo.learner import PolicyLearner
    from trainers.run.checkpoint import whole_weights

    config = context.config
    if (size := checkpoint_bytes(model_shape(config), config)) > _LARGEST:
        return not_checked(f"a checkpoint of {size_in_words(size)} is not written for a trial")
    policy, state = context.policy, TrainerState(step=1, policy_version=1)
    learner = PolicyLearner(policy, config)
    before = {name: weight.clone() for name, weight in whole_weights(policy).items()}
    place = nearest_directory(Path(config.output_dir).expanduser())
    with TemporaryDirectory(prefix=".doctor-", dir=place) as scratch:
        path = Path(scratch) / "checkpoint"
        learner.snapshot(state).write(path)
        written = sum(file.stat().st_size for file in path.iterdir())
        with nudged(policy):
            loaded = learner.load(path)
            after = whole_weights(policy)
            changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    if changed or loaded != state:
        what = changed[0] if changed else "the counters"
        return error(
            f"a checkpoint came back with other values in {what}", "another model or disk: nothing could be resumed"
        )
    return ok(f"{size_in_words(written)} written, checked and read back, the same to the last bit")
