"""Phase 3: AReaL's `PPOTrainer` runs everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from areal import PPOTrainer
from areal.api import StepInfo
from areal.api.alloc_mode import ModelAllocation
from areal.api.cli_args import GRPOConfig, InferenceEngineConfig, PPOActorConfig
from datasets import Dataset

from trainers.areal.process import no_trackers
from trainers.areal.rollout.rollout_engine import PolicyRolloutEngine
from trainers.areal.train.ppo_actor import PPOPolicyActor


class Engines(NamedTuple):
    """What AReaL's trainer is handed instead of making it itself; it evaluates on `rollout`, too."""

    actor: PPOPolicyActor
    rollout: PolicyRolloutEngine


@dataclass(frozen=True)
class Hooks:
    """Called by AReaL's trainer in every step: after an update is published, and where evaluations belong."""

    step_ended: Callable[[], None]
    settled: Callable[[], None]


class HookedPPOTrainer(PPOTrainer):  # type: ignore[misc]
    """AReaL's trainer on places of a sequence instead of a data set; `hooks` are told how far it is."""

    def __init__(self, config: GRPOConfig, hooks: Hooks) -> None:
        self._hooks = hooks
        places = Dataset.from_dict({"index": list(range(config.total_train_steps * config.train_dataset.batch_size))})
        no_trackers()
        super().__init__(config, train_dataset=places, valid_dataset=places.select(range(1)))

    def start_at(self, step: int) -> None:
        """Go on after `step` finished steps, as after AReaL's own recovery."""
        last = StepInfo(epoch=0, epoch_step=step - 1, global_step=step - 1, steps_per_epoch=len(self.train_dataloader))
        self.recover_info = SimpleNamespace(last_step_info=last) if step else None

    def _save_hf(self, epoch: int, epoch_step: int, global_step: int) -> None:
        del epoch, epoch_step, global_step  # no export of AReaL's: the run's checkpoints hold everything
        self._hooks.step_ended()

    def _evaluate(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs  # AReaL's evaluator counts the steps of this process, and passes over those of a resumed run
        self._hooks.settled()


class PolicyPPOTrainer(HookedPPOTrainer):
    """AReaL's trainer on engines that exist already, in SPMD mode."""

    def __init__(self, config: GRPOConfig, engines: Engines, hooks: Hooks) -> None:
        self._engines = engines
        super().__init__(config, hooks)

    def _create_train_engine(self, actor_config: PPOActorConfig, alloc: ModelAllocation) -> PPOPolicyActor:
        del actor_config, alloc  # the actor was made from them, and has been started
        return self._engines.actor

    def _init_rollout(
        self, rollout_config: InferenceEngineConfig, is_eval: bool = False, lora_path: str | None = None
    ) -> PolicyRolloutEngine:
        del rollout_config, is_eval, lora_path
        engine = self._engines.rollout
        engine.initialize(train_data_parallel_size=1)  # its configuration holds this process's share already
        return engine
