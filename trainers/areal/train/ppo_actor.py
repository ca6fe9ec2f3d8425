"""Phase 3's actor: AReaL's advantages and loss on ragged groups, with what a run wants to know of each update."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from areal.api import WeightUpdateMeta
from areal.utils import stats_tracker
from areal.utils.constants import PROX_LOGP_METHOD_RECOMPUTE
from areal.utils.data import Normalization
from torch import Tensor
from torch.nn import functional as F

from cua_agent.models.policy import PolicyModel
from trainers.areal.config.translation import ppo_actor_config, reward_norm
from trainers.areal.tensors import TensorDict, first_rows, packed_row_numbers
from trainers.areal.train.data_parallel import summed
from trainers.areal.train.fsdp_actor import FSDPPolicyActor
from trainers.areal.train.phase2_learner import step_record
from trainers.config import ConfigError, LossConfig, TrainConfig
from trainers.distributed.process_group import Communicator
from trainers.grpo.kl import ESTIMATORS, MAX_LOG_RATIO
from trainers.grpo.loss import LossSums, loss_sums
from trainers.grpo.objectives import token_losses
from trainers.protocol import StepRecord

LossFunction = Callable[..., Tensor]


class PPOPolicyActor(FSDPPolicyActor):
    """`FSDPPolicyActor` under AReaL's `PPOActor`, which may be handed an empty batch: then it does nothing. `publish`
    passes on what an update changed; `stats` are of the last one, empty if there was nothing to learn from."""

    def __init__(self, policy: PolicyModel, config: TrainConfig, processes: int = 1) -> None:
        super().__init__(ppo_actor_config(config, processes), policy, config.optim)
        self._train_config = config
        self._custom_loss = custom_loss(config.areal.loss)
        self.watch = LossWatch(config.loss)
        self.stats: Mapping[str, float] = {}
        self.publish: Callable[[], None] = lambda: None

    def prepare_batch(self, *args: Any, **kwargs: Any) -> list[TensorDict]:
        """This process's share of the next batch, as the rollout engine gives it. AReaL would deal the groups out anew,
        and can only deal groups of the same number of rows."""
        share: list[TensorDict] = self.rollout_engine.prepare_batch(*args, **kwargs)
        return share

    def compute_logp(self, data: list[TensorDict]) -> list[Tensor]:
        """AReaL's: the log-probs of every group at the present weights."""
        logprobs: list[Tensor] = super().compute_logp(data) if data else []
        return logprobs

    def compute_advantages(self, data: list[TensorDict]) -> list[TensorDict]:
        """AReaL's advantages, and what turns add to them; every entry of `data` is one group, of any number of episodes
        and rows."""
        if not data:
            return []
        images = [group.pop("multi_modal_input", None) for group in data]  # AReaL would copy them all to every group
        last = [LastTokens(group["loss_mask"]) for group in data]
        self.actor.reward_norm = RaggedNorm(self._train_config, [group["episode"] for group in data])
        computed = super().compute_advantages([own.of(group) for own, group in zip(last, data, strict=True)])
        groups = [own.put_back(new, group) for own, new, group in zip(last, computed, data, strict=True)]
        for group, own in zip(groups, images, strict=True):
            if own is not None:
                group["multi_modal_input"] = own
            if "step_advantages" in group:
                group["advantages"] = group["advantages"] + group.pop("step_advantages")
        return groups

    def ppo_update(self, data: list[TensorDict]) -> None:
        """AReaL's update."""
        self.stats = {}
        if data:
            super().ppo_update(data)

    def lr_scheduler_step(self) -> None:
        """A step of the schedule, if the last update changed the weights."""
        if self.stats.get("update_successful"):
            super().lr_scheduler_step()

    def train_batch(self, input_: Any, loss_fn: Any, loss_weight_fn: Any) -> dict[str, float]:
        """AReaL's optimiser step, with the loss watched, the KL added, and a custom loss in its place."""
        if isinstance(loss_fn, functools.partial):
            options = {**loss_fn.keywords, "prox_logp_method": PROX_LOGP_METHOD_RECOMPUTE}  # `LossWatch` has them
            loss_fn = functools.partial(self._custom_loss or loss_fn.func, *loss_fn.args, **options)
        self.watch.begin(loss_fn)
        self.stats = super().train_batch(input_, self.watch, loss_weight_fn)
        return dict(self.stats)

    def last_update(self, communicator: Communicator) -> StepRecord | None:
        """What the last update came to, in all processes together; None if there was nothing to learn from."""
        return step_record(self.watch.metrics(communicator), self.stats) if self.stats else None

    def export_stats(self) -> dict[str, float]:
        """AReaL's statistics, of this process's share. AReaL would reduce them over all processes name by name; where
        one has nothing to train on it lacks some, and all wait for each other for ever."""
        stats: dict[str, float] = stats_tracker.export_all()
        return stats

    def update_weights(self, meta: WeightUpdateMeta) -> None:
        """AReaL's trainer has made an update."""
        del meta  # its version counts steps
        self.publish()

    def set_version(self, version: int) -> None:
        """Nothing: AReaL's trainer counts its steps here; versions are weights that differ, see `take_version`."""

    def take_version(self, version: int) -> None:
        """The version of the present weights, for AReaL's statistics."""
        super().set_version(version)


class LastTokens:
    """The last trained token of each row of a group, behind one that is not.

    AReaL's advantage of a token is the sum of the rewards from there on: its discount and lambda are 1, its reward has
    no KL in it, and it has no values. All of a row's reward is that of its last token, so what AReaL gives that one
    (in a row of its own, not place by place over thousands) is the advantage of them all. AReaL loses the reward of a
    row that ends with a token that is not trained: here none does.
    """

    def __init__(self, loss_mask: Tensor) -> None:
        self._trained = loss_mask.bool()
        self._any = self._trained.any(-1, keepdim=True)
        self._last = loss_mask.shape[-1] - 1 - self._trained.flip(-1).int().argmax(-1, keepdim=True)

    def of(self, group: TensorDict) -> TensorDict:
        """What AReaL's advantages are computed from; `group` of B rows of L tokens."""
        token = {name: F.pad(group[name].gather(-1, self._last), (1, 0)) for name in ("input_ids", "logprobs")}
        there, began = F.pad(self._any, (1, 0), value=False), F.pad(self._any, (1, 0), value=True)
        return {**token, "loss_mask": there.int(), "attention_mask": began, "rewards": group["rewards"]}

    def put_back(self, computed: TensorDict, group: TensorDict) -> TensorDict:
        """`group` with what AReaL computed, where each token is predicted: one place before it."""
        predicts = self._trained.roll(-1, dims=-1)
        logprobs = group["logprobs"].roll(-1, dims=-1) * predicts
        own: TensorDict = {name: logprobs for name in ("logprobs", "prox_logp") if name in computed}
        of_all = {name: computed[name][:, :1].where(predicts, 0) for name in ("advantages", "returns", "kl_rewards")}
        total = computed["tot_rewards"][:, :1].where(self._any, 0)
        rewards = torch.zeros_like(logprobs).scatter(-1, (self._last - 1).clamp(min=0), total)
        return {**group, **own, **of_all, "tot_rewards": rewards, "loss_mask": predicts.float()}


class RaggedNorm:
    """AReaL's `Normalization` over groups of different sizes; the rows of an episode share its value."""

    def __init__(self, config: TrainConfig, episodes: Sequence[Tensor]) -> None:
        self._config = config
        self._episodes = episodes

    def __call__(self, rewards: Tensor) -> Tensor:
        """float32 [B]: the rewards [B] of all groups in order, each relative to its group's episodes."""
        parts = []
        for part, episodes in zip(torch.split(rewards, [len(e) for e in self._episodes]), self._episodes, strict=True):
            first = first_rows(episodes)
            norm = Normalization(reward_norm(self._config, len(first)))
            numbers = torch.unique(episodes, sorted=True, return_inverse=True)[1]
            order = numbers[first]
            normalised = torch.empty(len(first), device=part.device).index_copy_(0, order, norm(part[first].double()))
            parts.append(normalised[numbers])
        return torch.cat(parts)


class LossWatch:
    """A loss of AReaL's interface that adds the KL term to another one and sums up what `StepRecord` reports."""

    def __init__(self, config: LossConfig) -> None:
        self._config = config
        self._inner: LossFunction | None = None
        self._sums = LossSums()

    def begin(self, inner: LossFunction) -> None:
        """The coming calls belong to one update and go to `inner`."""
        self._inner, self._sums = inner, LossSums()

    def __call__(self, logprobs: Tensor, entropy: Tensor, data: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """The mean over the micro-batch's trained tokens, as AReaL's losses are."""
        assert self._inner is not None
        data = {"prox_logp": proximal_logprobs(logprobs), **data}
        places = data["trained_at"]
        kl = None
        if "ref_logp" in data:
            present, reference = (values.reshape(-1)[places] for values in (logprobs, data["ref_logp"]))
            kl = ESTIMATORS[self._config.kl_estimator](present, reference)
        watched = self._watched(kl, {**data, "present": logprobs, "entropy": entropy}, places)
        # The GPU is asked from here on, by AReaL's loss as well, and works on what it was given before.
        if data["prox_logp"].isfinite().all():
            policy_loss = self._inner(*bounded_ratios(logprobs, entropy, data), **kwargs)
        else:  # AReaL's would raise; a loss that is not finite makes a skipped update
            policy_loss = math.nan * logprobs.sum()
        loss, count = policy_loss, max(len(places), 1)
        if kl is not None:
            loss = loss + self._config.kl_coefficient * kl.sum() / count
        self._sums += watched.with_losses(loss * count, policy_loss * count)
        return loss

    @torch.no_grad()
    def _watched(self, kl: Tensor | None, data: Mapping[str, Any], places: Tensor) -> LossSums:
        """What the configured loss does to the tokens at `places`, of which AReaL says the mean only."""
        names = ("present", "logprobs", "prox_logp", "advantages", "entropy")
        present, old, proximal, advantages, entropy = (data[name].reshape(-1)[places] for name in names)
        rows = packed_row_numbers(data)[places]
        terms = token_losses(present, proximal, old, advantages, rows, self._config)
        actions = data["actions"].reshape(-1)[places].bool() if "actions" in data else None
        return loss_sums(present, old, entropy, terms, kl, actions)

    def metrics(self, communicator: Communicator) -> dict[str, float]:
        """As `LossSums.metrics`, of all processes together; losses are token means over the update."""
        sums = summed(self._sums, communicator)
        figures, count = sums.metrics(), max(sums.tokens, 1)
        return {**figures, "loss": figures["loss"] / count, "policy_loss": figures["policy_loss"] / count}


def proximal_logprobs(logprobs: Tensor) -> Tensor:
    """Log-probs of the proximal policy, given those of the policy that is trained: the same, because a batch makes one
    update. AReaL would compute them in a forward pass of their own."""
    return logprobs.detach()


def bounded_ratios(
    logprobs: Tensor, entropy: Tensor, data: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
    """The arguments of a loss of AReaL's with log-ratios of present to proximal and proximal to behaviour policy within
    `MAX_LOG_RATIO`, as `trainers.grpo.loss` bounds them: beyond it there is no gradient."""
    proximal = data["prox_logp"]
    return _within(logprobs, proximal), entropy, {**data, "logprobs": _within(data["logprobs"], proximal)}


def _within(logprobs: Tensor, others: Tensor) -> Tensor:
    """`logprobs`, where they are further than `MAX_LOG_RATIO` from `others` at that distance and without gradient."""
    distance = logprobs.detach() - others
    nearest = others + distance.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.where(distance.abs() <= MAX_LOG_RATIO, logprobs, nearest)


def custom_loss(name: str) -> LossFunction | None:
    """The function that `areal.loss` names, None for AReaL's own. Raises `ConfigError`."""
    if name == "grpo":
        return None
    module, _, function = name.partition(":")
    try:
        loss: LossFunction = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        allowed = "grpo, or module:function with the arguments of areal.trainer.ppo.actor.grpo_loss_fn"
        raise ConfigError(f"areal.loss={name}: {error}; allowed: {allowed}") from error
    return loss
