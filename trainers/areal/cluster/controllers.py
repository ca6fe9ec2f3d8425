"""AReaL's `PPOTrainer` as the controller of workers that construct our engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from areal.api import Scheduler, WeightUpdateMeta
from areal.api.alloc_mode import ModelAllocation
from areal.api.cli_args import GRPOConfig, InferenceEngineConfig, PPOActorConfig
from areal.infra import RolloutController
from areal.trainer.ppo.actor import PPOActorController

from trainers.areal.cluster.group_reports import pack_specs, unpack_played
from trainers.areal.cluster.worker_engines import WorkerActor, WorkerEngine
from trainers.areal.process import hush
from trainers.areal.rollout.distributed_rollouts import in_order
from trainers.areal.tensors import TensorDict
from trainers.areal.train.hooked_ppo_trainer import HookedPPOTrainer, Hooks
from trainers.areal.train.phase2_learner import step_record
from trainers.protocol import EpisodeSpec, OnDone, Played, StepRecord, TrainerState


class ActorController(PPOActorController):  # type: ignore[misc]
    """The training workers. `next_batch` gives what they learn from next, if anything; `publish` passes on what an
    update changed."""

    next_batch: Callable[[], list[TensorDict]]
    publish: Callable[[], None]
    _learnt = False

    def prepare_batch(self, *args: Any, **kwargs: Any) -> list[TensorDict]:
        del args, kwargs
        return self.next_batch()

    def compute_logp(self, data: list[TensorDict]) -> Any:
        return super().compute_logp(data) if data else []

    def compute_advantages(self, data: list[TensorDict]) -> Any:
        return super().compute_advantages(data) if data else []

    def ppo_update(self, data: list[TensorDict]) -> None:
        self._learnt = bool(data)
        if data:
            super().ppo_update(data)

    def step_lr_scheduler(self) -> None:
        if self._learnt:
            super().step_lr_scheduler()

    def last_update(self) -> StepRecord | None:
        """What the last update of all training workers came to; None if there was nothing to learn from."""
        return step_record(**self._custom_function_call("last_figures")) if self._learnt else None

    def update_weights(self, meta: WeightUpdateMeta) -> None:
        """AReaL's trainer has made an update."""
        del meta  # its version counts steps
        self.publish()

    def send_weights(self, meta: WeightUpdateMeta) -> None:
        """Hand the trained weights to the rollout workers, as the version that `meta` names."""
        super().update_weights(meta)
        self._custom_function_call("take_version", int(meta.version))

    def set_version(self, version: int) -> None:
        """Nothing: AReaL's trainer counts its steps here; versions are weights that differ."""

    def save_run(self, path: Path, state: TrainerState) -> None:
        self._custom_function_call("save_run", str(path.absolute()), state)

    def load_run(self, path: Path) -> TrainerState:
        state: TrainerState = self._custom_function_call("load_run", str(path.absolute()))
        return state


class PlayerController(RolloutController):  # type: ignore[misc]
    """The rollout workers; implements `EpisodePlayer`."""

    def set_version(self, version: int) -> None:
        """Nothing: AReaL's trainer counts its steps here; versions are weights that differ, see `take_version`."""

    def take_version(self, version: int) -> None:
        """The version that the workers serve."""
        super().set_version(version)

    def play(self, specs: Sequence[EpisodeSpec], on_done: OnDone) -> list[Played]:
        shares = [unpack_played(share) for share in self._collective_rpc("play_share", specs=pack_specs(specs))]
        on_done(len(specs), len(specs))
        return in_order(shares)


class ControllerPPOTrainer(HookedPPOTrainer):
    """AReaL's trainer in single-controller mode, on `scheduler`."""

    actor: ActorController
    rollout: PlayerController

    def __init__(self, config: GRPOConfig, scheduler: Scheduler, hooks: Hooks) -> None:
        self._own_scheduler = scheduler
        super().__init__(config, hooks)
        hush()  # AReaL raises the level of a controller's loggers again

    def serve(self, version: int) -> None:
        """Make the trained weights those of every worker, as `version`."""
        self.actor.send_weights(self.weight_update_meta.with_version(version))
        self.rollout.take_version(version)

    def _init_scheduler(self) -> Scheduler:
        return self._own_scheduler

    def _create_train_engine(self, actor_config: PPOActorConfig, alloc: ModelAllocation) -> ActorController:
        actor = ActorController(WorkerActor, actor_config, self.scheduler)
        actor.create_process_group(parallel_strategy=alloc.parallel)
        return actor

    def _init_rollout(
        self, rollout_config: InferenceEngineConfig, is_eval: bool = False, lora_path: str | None = None
    ) -> PlayerController | None:
        del lora_path
        if is_eval:
            return None  # the rollout workers play evaluations, too
        rollout = PlayerController(WorkerEngine, rollout_config, self.scheduler)
        rollout.initialize(role="rollout", server_args={})
        return rollout
