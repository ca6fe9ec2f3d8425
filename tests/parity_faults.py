"""Deliberate faults, one at a time, in the process of a side: `python -m tests.parity_faults SIDE DIRECTORY`
replays the plan as it is, and then with each.

A fault replaces one function of the code under test. Its evidence lies under the name `<side>-<fault>`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.parity_rig import toy_parts
from trainers.parity.plan import Plan, load_plan
from trainers.parity.worker import main, work

Wrap = Callable[..., Any]
AREAL = ("phase2", "phase3")
ASYNCHRONOUS = ("phase1", "phase2", "phase3")
_NO_IMAGE = "image placeholders, but its images give"


@dataclass(frozen=True)
class Fault:
    """`target` ("module:name" or "module:Class.name") is replaced by a function that is called with the original and
    then the arguments. The first rung that fails on `piece` must be `rung`; with `noticed`, because the code under test
    itself stops with that message."""

    rung: int
    piece: str
    sides: tuple[str, ...]
    target: str
    wrap: Wrap
    noticed: str = ""

    def applied(self) -> AbstractContextManager[Any]:
        module, _, path = self.target.partition(":")
        owner: Any = import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, wrap = getattr(owner, name), self.wrap

        def faulty(*args: Any, **kwargs: Any) -> Any:
            return wrap(original, *args, **kwargs)

        return patch.object(owner, name, faulty)


def _mask_shifted(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    return {**tensors, "loss_mask": tensors["loss_mask"].roll(1, dims=-1)}


def _image_blackened(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    next(images for images in tensors["multi_modal_input"] if images)["pixel_values"].fill_(0)
    return tensors


def _images_dropped(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    return {name: tensor for name, tensor in tensors.items() if name != "multi_modal_input"}


def _areal_norm(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    """AReaL's own defaults: sample deviation, epsilon 1e-5."""
    return replace(original(*args, **kwargs), std_unbiased=True, eps=1e-5)


def _first_group_flipped(original: Wrap, self: Any, rewards: torch.Tensor) -> Any:
    out = original(self, rewards)
    out[: len(self._episodes[0])] *= -1
    return out


def _first_row_flipped(original: Wrap, self: Any, batch: Any) -> Any:
    tensors = original(self, batch)
    tensors["advantages"][0] *= -1
    return tensors


def _attention_leaks(original: Wrap, cu_seqlens: torch.Tensor) -> Any:
    """One long sequence, as far as the model can tell."""
    return (sum(original(cu_seqlens)),)


def _other_temperature(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), temperature=0.9)


def _wrong_lora_scale(original: Wrap, model: Any, spec: Any) -> Any:
    return original(model, replace(spec, alpha=2 * spec.alpha))


def _adapter_in_the_reference(original: Wrap, self: Any) -> Any:
    return nullcontext()


def _hot_reference(original: Wrap, actor: Any, data: Any) -> Any:
    temperature = actor.config.temperature
    actor._head._temperature = 1.1 * temperature
    try:
        return original(actor, data)
    finally:
        actor._head._temperature = temperature


def _sample_deviation(original: Wrap, values: Any) -> Any:
    return statistics.stdev(values)


def _clipped_otherwise(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), eps_clip=0.05)


def _never_rejected(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), rejection_sampling=None)


def _gradient_off(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    """The loss that is reported is right, the one that is differentiated is not."""
    return original(*args, **kwargs) * 1.001


def _warmup_late(original: Wrap, update: int, warmup: int) -> Any:
    return original(max(update - 1, 0), warmup)


def _stale_weights(original: Wrap, self: Any, version: int, weights: Any) -> Any:
    """The version moves on, the weights that are served do not."""
    return original(self, version, {} if version else weights)


LEARNER, FULL, ACTOR = (
    "trainers.areal.train.phase2_learner",
    "trainers.areal.train.phase3_trainer",
    "trainers.areal.train.ppo_actor",
)
SHARDED = "trainers.areal.train.fsdp_actor:FSDPPolicyActor"
SERVED = "trainers.areal.rollout.rollout_engine:PolicyRolloutEngine.update_weights"
ADAPTED = "cua_agent.models.loaders:attach_lora"
REFERENCE = "cua_agent.models.policy:PolicyModel.reference"

FAULTS = {
    "mask_shifted": Fault(0, "full/plain", ("phase2",), f"{LEARNER}:rows_to_tensors", _mask_shifted),
    "mask_shifted_ppo": Fault(0, "full/plain", ("phase3",), f"{FULL}:rows_to_tensors", _mask_shifted),
    "image_blackened": Fault(0, "full/plain", ("phase2",), f"{LEARNER}:rows_to_tensors", _image_blackened),
    "image_blackened_ppo": Fault(0, "full/plain", ("phase3",), f"{FULL}:rows_to_tensors", _image_blackened),
    "image_dropped": Fault(0, "full/plain", ("phase2",), f"{LEARNER}:rows_to_tensors", _images_dropped, _NO_IMAGE),
    "image_dropped_ppo": Fault(0, "full/plain", ("phase3",), f"{FULL}:rows_to_tensors", _images_dropped, _NO_IMAGE),
    "areal_norm": Fault(0, "full/plain", ("phase3",), f"{ACTOR}:reward_norm", _areal_norm),
    "sample_deviation": Fault(0, "full/plain", ("phase1", "phase2"), "statistics:pstdev", _sample_deviation),
    "group_flipped": Fault(0, "full/ragged", ("phase3",), f"{ACTOR}:RaggedNorm.__call__", _first_group_flipped),
    "row_flipped": Fault(0, "full/plain", ("phase2",), f"{LEARNER}:Phase2Learner.tensors", _first_row_flipped),
    "attention_leaks": Fault(
        1, "full/packed", AREAL, "trainers.areal.train.fsdp_actor:sequence_lengths", _attention_leaks
    ),
    "temperature": Fault(1, "full/plain", ("phase2",), f"{LEARNER}:actor_config", _other_temperature),
    "temperature_ppo": Fault(1, "full/plain", ("phase3",), f"{ACTOR}:ppo_actor_config", _other_temperature),
    "lora_scale": Fault(1, "lora/moved", ASYNCHRONOUS, ADAPTED, _wrong_lora_scale),
    "reference": Fault(1, "lora/kl", ("phase1",), REFERENCE, _adapter_in_the_reference),
    "reference_hot": Fault(1, "full/kl", AREAL, f"{SHARDED}.reference_logprobs", _hot_reference),
    "clip": Fault(1, "full/moved", ("phase3",), f"{ACTOR}:ppo_actor_config", _clipped_otherwise),
    "rejection": Fault(1, "full/stale", ("phase3",), f"{ACTOR}:ppo_actor_config", _never_rejected),
    "gradient": Fault(2, "full/plain", ("phase2",), f"{LEARNER}:BatchLoss.__call__", _gradient_off),
    "gradient_ppo": Fault(2, "full/plain", ("phase3",), f"{ACTOR}:LossWatch.__call__", _gradient_off),
    "warmup": Fault(3, "full/plain", AREAL, "trainers.areal.train.fsdp_actor:warmup_factor", _warmup_late),
    "stale_adapter": Fault(4, "lora/greedy", ASYNCHRONOUS, SERVED, _stale_weights),
    "stale_weights": Fault(4, "full/greedy", ("phase3",), SERVED, _stale_weights),
}


@dataclass(frozen=True)
class FaultyPlan(Plan):
    """A plan whose evidence goes to a place of its own."""

    fault: str = ""

    def evidence(self, side: str, piece: str) -> Path:
        return super().evidence(f"{side}-{self.fault}", piece)


def replay_with_faults(side: Any, directory: Path) -> None:
    plan = load_plan(directory)
    for name, fault in FAULTS.items():
        if side in fault.sides:
            with fault.applied():
                work(side, FaultyPlan(plan.directory, plan.pieces, fault=name), fault.piece, toy_parts)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), toy_parts)  # type: ignore[arg-type]
    replay_with_faults(sys.argv[1], Path(sys.argv[2]))
