"""Deliberate faults, one at a time, in the process of a side: `python -m tests.parity_faults SIDE DIRECTORY`
replays the plan as it is, and then with each.

A fault replaces one function of the code under test. Its evidence lies under the name `<side>-<fault>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cua_agent.trajectory import Trajectory
from tests import parity_damage as do
from tests.parity_damage import Wrap
from tests.parity_rig import toy_parts
from trainers.parity.plan import Plan, load_plan
from trainers.parity.worker import main, work

AREAL = ("phase2", "phase3")
ASYNCHRONOUS = ("phase1", "phase2", "phase3")
_NO_IMAGE = "image placeholders, but its images give"


@dataclass(frozen=True)
class Fault:
    """`target` ("module:name" or "module:Class.name"; or one for each of `sides`) is replaced by a function that is
    called with the original and then the arguments. The first rung that fails on `piece` must be `rung`; with
    `noticed`, because the code under test itself stops with that message."""

    rung: int
    piece: str
    sides: tuple[str, ...]
    target: str | tuple[str, ...]
    wrap: Wrap
    noticed: str = ""

    def applied(self, side: str) -> AbstractContextManager[Any]:
        target = self.target if isinstance(self.target, str) else self.target[self.sides.index(side)]
        module, _, path = target.partition(":")
        owner: Any = import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, wrap = getattr(owner, name), self.wrap

        def faulty(*args: Any, **kwargs: Any) -> Any:
            return wrap(original, *args, **kwargs)

        return patch.object(owner, name, faulty)


LEARNER, FULL, ACTOR = (
    "trainers.areal.train.phase2_learner",
    "trainers.areal.train.phase3_trainer",
    "trainers.areal.train.ppo_actor",
)
OBJECTIVES = "trainers.grpo.objectives"
BOUNDED = "trainers.areal.config.translation:_rejection"
CLIPPED = f"{ACTOR}:ppo_actor_config"
SERVED = "trainers.areal.rollout.rollout_engine:PolicyRolloutEngine.update_weights"
ADAPTED = "cua_agent.models.loaders:attach_lora"
REFERENCE = "cua_agent.models.policy:PolicyModel.reference"
POOL = "trainers.rollouts.replay:SuccessPool"
ENGINE = "trainers.areal.train.fsdp_actor"
OPTIMISER = f"{ENGINE}:FSDPPolicyActor._create_optimizer"
CONFIGURED = (f"{LEARNER}:actor_config", f"{ACTOR}:ppo_actor_config")
TENSORS = (f"{LEARNER}:rows_to_tensors", f"{FULL}:rows_to_tensors")
LOADED = ("trainers.grpo.learner:load_checkpoint", f"{LEARNER}:load_checkpoint", f"{LEARNER}:load_checkpoint")

REPLAYED = {
    "mask_shifted": Fault(0, "full/plain", AREAL, TENSORS, do.mask_shifted),
    "image_blackened": Fault(0, "full/plain", AREAL, TENSORS, do.image_blackened),
    "image_dropped": Fault(0, "full/plain", AREAL, TENSORS, do.images_dropped, _NO_IMAGE),
    "versions_late": Fault(0, "full/plain", AREAL, TENSORS, do.versions_late),
    "areal_norm": Fault(0, "full/plain", ("phase3",), f"{ACTOR}:reward_norm", do.areal_norm),
    "deviation_kept": Fault(0, "full/knobs", ("phase3",), f"{ACTOR}:reward_norm", do.deviation_kept),
    "own_mean": Fault(0, "full/dual_clip", ("phase3",), f"{ACTOR}:reward_norm", do.configured(mean_leave1out=False)),
    "sample_deviation": Fault(0, "full/plain", ("phase1", "phase2"), "statistics:pstdev", do.sample_deviation),
    "group_flipped": Fault(0, "full/ragged", ("phase3",), f"{ACTOR}:RaggedNorm.__call__", do.first_group_flipped),
    "row_flipped": Fault(0, "full/plain", ("phase2",), f"{LEARNER}:Phase2Learner.tensors", do.first_row_flipped),
    "steps_shifted": Fault(0, "full/credit", ("phase3",), f"{FULL}:with_steps", do.steps_shifted),
    "steps_of_others": Fault(0, "full/credit", ("phase2",), "trainers.grpo.batching:token_steps", do.steps_reversed),
    "branches_whole": Fault(
        0, "full/forked", ASYNCHRONOUS, "trainers.grpo.forking:stretch_values", do.branches_from_the_start
    ),
    "trunk_flat": Fault(0, "full/forked", ("phase2", "phase3"), "trainers.grpo.forking:_worth_at", do.first_stretch),
    "no_discount": Fault(
        0, "full/credit", ("phase1", "phase2", "phase3"), "trainers.grpo.credit:returns_to_go", do.undiscounted
    ),
    "attention_leaks": Fault(
        1, "full/packed", AREAL, "trainers.areal.train.micro_batches:sequence_lengths", do.attention_leaks
    ),
    "temperature": Fault(1, "full/plain", AREAL, CONFIGURED, do.other_temperature),
    "temperature_ignored": Fault(1, "full/knobs", AREAL, CONFIGURED, do.temperature_ignored),
    "temperature_squared": Fault(1, "full/knobs", AREAL, CONFIGURED, do.temperature_squared),
    "scored_at_one": Fault(1, "full/knobs", ("phase1",), "trainers.grpo.gradients:score_tokens", do.scored_at_one),
    "nothing_banned": Fault(
        1, "full/knobs", AREAL, "trainers.areal.train.scoring_head:ScoringHead.__init__", do.nothing_banned
    ),
    "lora_scale": Fault(1, "lora/moved", ASYNCHRONOUS, ADAPTED, do.wrong_lora_scale),
    "reference": Fault(1, "lora/kl", ("phase1",), REFERENCE, do.adapter_in_the_reference),
    "reference_hot": Fault(1, "full/kl", AREAL, f"{ENGINE}:FSDPPolicyActor.reference_logprobs", do.hot_reference),
    "estimator": Fault(
        1, "full/knobs", AREAL, (f"{LEARNER}:BatchLoss.__init__", f"{ACTOR}:LossWatch.__init__"), do.other_estimator
    ),
    "thoughts_for_actions": Fault(1, "full/plain", AREAL, "trainers.areal.tensors:action_tokens", do.all_actions),
    "token_mean": Fault(1, "full/ours", ("phase2",), f"{LEARNER}:weigh_rows", do.weighed_by_tokens),
    "longer": Fault(1, "lora/reinforce", ("phase2",), f"{LEARNER}:weigh_rows", do.longer),
    "clip": Fault(1, "full/moved", ("phase3",), CLIPPED, do.configured(eps_clip=0.05)),
    "dual_clip": Fault(1, "full/moved", ("phase1", "phase2"), f"{OBJECTIVES}:ppo_clip", do.dual_clip),
    "areal_dual_clip": Fault(1, "full/moved", ("phase3",), CLIPPED, do.configured(c_clip=3.0)),
    "single_clip": Fault(1, "full/dual_clip", ("phase3",), CLIPPED, do.configured(c_clip=None)),
    "clip_even": Fault(1, "full/dual_clip", ("phase3",), CLIPPED, do.configured(eps_clip_higher=None)),
    "tokens_for_rows": Fault(1, "full/gspo", ("phase3",), CLIPPED, do.configured(importance_sampling_level="token")),
    "row_ratio_summed": Fault(1, "full/gspo", ("phase1", "phase2"), f"{OBJECTIVES}:row_means", do.summed_for_averaged),
    "rows_mixed": Fault(1, "full/gspo", ("phase2",), f"{LEARNER}:packed_row_numbers", do.one_row),
    "masked": Fault(1, "full/row_bounds", ("phase3",), BOUNDED, do.masked_for_clamped),
    "gate": Fault(1, "lora/sapo", ("phase3",), CLIPPED, do.configured(sapo_tau_neg=1.0)),
    "weight_unclipped": Fault(1, "lora/cispo", ("phase1", "phase2"), f"{OBJECTIVES}:cispo", do.never_clipped),
    "rejection": Fault(1, "full/stale", ("phase3",), CLIPPED, do.configured(rejection_sampling=None)),
    "kl_unbounded": Fault(1, "full/kl_bounds", ("phase3",), CLIPPED, do.configured(rejection_sampling=None)),
    "gradient": Fault(
        2, "full/plain", AREAL, (f"{LEARNER}:BatchLoss.__call__", f"{ACTOR}:LossWatch.__call__"), do.gradient_off
    ),
    "entropy": Fault(2, "full/ours", ("phase2",), f"{LEARNER}:BatchLoss.__call__", do.entropy_is_constant),
}

OPTIMISED = {
    "rate": Fault(0, "full/plain", AREAL, CONFIGURED, do.tuned(lr=lambda rate: 10 * rate)),
    "betas": Fault(0, "full/plain", ("phase2",), CONFIGURED[0], do.tuned(beta2=lambda _: 0.999)),
    "first_beta": Fault(0, "full/plain", ("phase3",), CONFIGURED[1], do.tuned(beta1=lambda _: 0.95)),
    "epsilon": Fault(0, "full/plain", AREAL, CONFIGURED, do.tuned(eps=lambda _: 1e-6)),
    "other_epsilon": Fault(0, "full/plain", ("phase1",), "trainers.grpo.learner:AdamW", do.other_epsilon),
    "decay": Fault(0, "full/plain", ("phase3",), CONFIGURED[1], do.tuned(weight_decay=lambda _: 0.01)),
    "no_decay": Fault(0, "full/knobs", ("phase2",), CONFIGURED[0], do.tuned(weight_decay=lambda _: 0.0)),
    "decay_as_gradient": Fault(0, "full/plain", ("phase2",), OPTIMISER, do.decay_as_gradient),
    "biases_spared": Fault(0, "full/plain", ("phase3",), OPTIMISER, do.biases_spared, "trained other parameters"),
    "warmup": Fault(3, "full/plain", AREAL, f"{ENGINE}:warmup_factor", do.warmup_late),
    "warmup_in_batches": Fault(3, "full/ours", ("phase2",), f"{ENGINE}:FSDPPolicyActor.__init__", do.warmup_in_batches),
    "schedule_runs": Fault(3, "full/plain", AREAL, f"{ENGINE}:FSDPPolicyActor.lr_scheduler_step", do.schedule_runs),
    "unclipped": Fault(3, "full/knobs", AREAL, CONFIGURED, do.tuned(gradient_clipping=lambda _: 1e9)),
    "unreported": Fault(
        3, "full/plain", AREAL, (f"{LEARNER}:step_record", f"{ACTOR}:step_record"), do.entropy_unreported
    ),
    "moments_lost": Fault(3, "full/resumed", ASYNCHRONOUS, LOADED, do.moments_lost),
    "adapter_moments_lost": Fault(3, "lora/resumed", ("phase3",), LOADED[-1:], do.moments_lost),
    "schedule_lost": Fault(3, "full/resumed", ASYNCHRONOUS, LOADED, do.schedule_lost),
    "version_lost": Fault(3, "full/resumed", ASYNCHRONOUS, LOADED, do.forgotten("policy_version")),
}

LIVE = {
    "stale_adapter": Fault(4, "lora/greedy", ASYNCHRONOUS, SERVED, do.stale_weights),
    "stale_weights": Fault(4, "full/live", ("phase3",), SERVED, do.stale_weights),
    "no_reference": Fault(4, "full/live", ("phase3",), f"{FULL}:Phase3Trainer._own_tensors", do.without_reference),
    "seeing": Fault(4, "full/live", ("phase3",), f"{FULL}:blind_gap", do.seeing),
    "no_steps": Fault(4, "full/live", ("phase3",), f"{FULL}:with_steps", do.without_steps),
    "sample_filter": Fault(
        4, "full/live", ASYNCHRONOUS, "trainers.areal.rollout.group_stream:carries_signal", do.filtered_by_sample
    ),
    "position_lost": Fault(4, "full/live", ("phase1", "phase3"), (LOADED[0], LOADED[2]), do.forgotten("data_position")),
    "step_lost": Fault(4, "full/live", ("phase2",), LOADED[1], do.forgotten("step")),
    "live_schedule_runs": Fault(
        4, "full/live", ("phase3",), f"{ENGINE}:FSDPPolicyActor.lr_scheduler_step", do.schedule_runs
    ),
    "live_moments_lost": Fault(4, "full/live", ("phase3",), LOADED[2], do.moments_lost),
    "others_drawn": Fault(
        4, "full/live", ASYNCHRONOUS, "trainers.rollouts.task_sampler:TaskSampler._by_chance", do.another_task
    ),
    "drawn_in_turn": Fault(
        4, "full/live", ("phase2",), "trainers.rollouts.task_sampler:TaskSampler._by_chance", do.in_turn
    ),
    "nothing_replayed": Fault(4, "full/live", ASYNCHRONOUS, f"{POOL}.completed", do.nothing_replayed),
    "pool_lost": Fault(4, "full/live", ASYNCHRONOUS, f"{POOL}.restore", do.nothing_restored),
    "replayed_as_new": Fault(
        4, "full/live", ("phase1", "phase3"), "trainers.rollouts.replay:_renamed", do.of_the_newest_version
    ),
    "not_proximal": Fault(4, "full/live", ("phase3",), f"{ACTOR}:proximal_logprobs", do.far_proximal),
    "gap_unreported": Fault(4, "full/live", ("phase1",), "trainers.run.recorder:step_metrics", do.gap_unreported),
}

FAULTS = REPLAYED | OPTIMISED | LIVE


@dataclass(frozen=True)
class FaultyPlan(Plan):
    """A plan whose evidence goes to a place of its own. What is seen before the first update needs one batch only."""

    fault: str = ""

    def batches(self, piece: str) -> list[Sequence[Trajectory]]:
        batches = super().batches(piece)
        return batches if FAULTS[self.fault].rung > 2 else batches[:1]

    def evidence(self, side: str, piece: str) -> Path:
        return super().evidence(f"{side}-{self.fault}", piece)


def replay_with_faults(side: Any, directory: Path) -> None:
    plan = load_plan(directory)
    for name, fault in FAULTS.items():
        if side in fault.sides and fault.piece in plan.pieces:
            with fault.applied(side):
                work(side, FaultyPlan(plan.directory, plan.pieces, fault=name), fault.piece, toy_parts)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), toy_parts)  # type: ignore[arg-type]
    replay_with_faults(sys.argv[1], Path(sys.argv[2]))
