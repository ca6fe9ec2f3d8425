"""What a deliberate fault does: functions that are called with the one they replace, and then with its arguments."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

Wrap = Callable[..., Any]


def mask_shifted(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    return {**tensors, "loss_mask": tensors["loss_mask"].roll(1, dims=-1)}


def image_blackened(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    next(images for images in tensors["multi_modal_input"] if images)["pixel_values"].fill_(0)
    return tensors


def images_dropped(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    return {name: tensor for name, tensor in tensors.items() if name != "multi_modal_input"}


def areal_norm(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    """AReaL's own defaults: sample deviation, epsilon 1e-5."""
    return replace(original(*args, **kwargs), std_unbiased=True, eps=1e-5)


def first_group_flipped(original: Wrap, self: Any, rewards: torch.Tensor) -> Any:
    out = original(self, rewards)
    out[: len(self._episodes[0])] *= -1
    return out


def first_row_flipped(original: Wrap, self: Any, batch: Any) -> Any:
    tensors = original(self, batch)
    tensors["advantages"][0] *= -1
    return tensors


def steps_shifted(original: Wrap, *args: Any) -> Any:
    """Where their tokens are, not where these are predicted."""
    tensors = original(*args)
    return {**tensors, "step_advantages": tensors["step_advantages"].roll(1, dims=-1)}


def steps_reversed(original: Wrap, row: Any, steps: Any) -> Any:
    return original(row, steps[::-1])


def undiscounted(original: Wrap, rewards: Any, discount: float) -> Any:
    return original(rewards, 1.0)


def seeing(original: Wrap, batch: Any, loss_and_gradients: Any) -> Any:
    return loss_and_gradients(batch).metrics["logprob_gap"]


def without_steps(original: Wrap, tensors: Any, rows: Any, config: Any) -> Any:
    return tensors


def all_actions(original: Wrap, input_ids: Any, loss_mask: Any, call_id: Any) -> Any:
    return loss_mask.bool()


def attention_leaks(original: Wrap, cu_seqlens: torch.Tensor) -> Any:
    """One long sequence, as far as the model can tell."""
    return (sum(original(cu_seqlens)),)


def other_temperature(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), temperature=0.9)


def wrong_lora_scale(original: Wrap, model: Any, spec: Any) -> Any:
    adapted = original(model, spec)
    for module in adapted.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 2 * scale for name, scale in module.scaling.items()}
    return adapted


def adapter_in_the_reference(original: Wrap, self: Any) -> Any:
    return nullcontext()


def hot_reference(original: Wrap, actor: Any, data: Any) -> Any:
    temperature = actor.config.temperature
    actor._head._temperature = 1.1 * temperature
    try:
        return original(actor, data)
    finally:
        actor._head._temperature = temperature


def sample_deviation(original: Wrap, values: Any) -> Any:
    return statistics.stdev(values)


def gradient_off(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    """The loss that is reported is right, the one that is differentiated is not."""
    return original(*args, **kwargs) * 1.001


def warmup_late(original: Wrap, update: int, warmup: int) -> Any:
    return original(max(update - 1, 0), warmup)


def stale_weights(original: Wrap, self: Any, version: int, weights: Any) -> Any:
    """The version moves on, the weights that are served do not."""
    return original(self, version, {} if version else weights)


def tuned(**changes: Callable[[Any], Any]) -> Wrap:
    """Other settings of AReaL's optimiser."""

    def wrap(original: Wrap, *args: Any, **kwargs: Any) -> Any:
        config = original(*args, **kwargs)
        new = {name: change(getattr(config.optimizer, name)) for name, change in changes.items()}
        return replace(config, optimizer=replace(config.optimizer, **new))

    return wrap


def other_epsilon(original: Wrap, *args: Any, **settings: Any) -> Any:
    return original(*args, **settings, eps=1e-6)


def decay_as_gradient(original: Wrap, self: Any, *args: Any) -> None:
    """Adam with L2 regularisation instead of AdamW."""
    original(self, *args)
    self.optimizer.__class__ = torch.optim.Adam
    for group in self.optimizer.param_groups:
        group["decoupled_weight_decay"] = False


def biases_spared(original: Wrap, self: Any, *args: Any) -> None:
    """No weight decay on vectors: a group of their own."""
    original(self, *args)
    [group] = self.optimizer.param_groups
    vectors = [p for p in group["params"] if p.dim() < 2]
    group["params"] = [p for p in group["params"] if p.dim() >= 2]
    self.optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})


def schedule_runs(original: Wrap, self: Any) -> None:
    original(self)
    original(self)


def warmup_in_batches(original: Wrap, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    self._warmup_steps //= 2


def entropy_unreported(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    record = original(*args, **kwargs)
    return replace(record, metrics={name: value for name, value in record.metrics.items() if name != "entropy"})


def moments_lost(original: Wrap, path: Path, **kwargs: Any) -> Any:
    state = original(path, **kwargs)
    kwargs["optimisation"].optimizer.state.clear()
    return state


def schedule_lost(original: Wrap, path: Path, **kwargs: Any) -> Any:
    state = original(path, **kwargs)
    scheduler = kwargs["optimisation"].scheduler
    scheduler.last_epoch = -1
    scheduler.step()
    return state


def forgotten(name: str) -> Wrap:
    """A counter that starts again at 0 on load."""

    def wrap(original: Wrap, *args: Any, **kwargs: Any) -> Any:
        return replace(original(*args, **kwargs), **{name: 0})

    return wrap


def temperature_ignored(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), temperature=1.0)


def temperature_squared(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)
    return replace(config, temperature=config.temperature**2)


def scored_at_one(original: Wrap, policy: Any, micro: Any, temperature: float, **kwargs: Any) -> Any:
    return original(policy, micro, 1.0, **kwargs)


def nothing_banned(original: Wrap, self: Any, head: Any, special: Any, *args: Any, **kwargs: Any) -> None:
    original(self, head, replace(special, banned=()), *args, **kwargs)


def other_estimator(original: Wrap, self: Any, *args: Any) -> None:
    original(self, *args)
    self._config = replace(self._config, kl_estimator="k3")


def deviation_kept(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), std_level="group")


def entropy_is_constant(original: Wrap, self: Any, logprobs: Any, entropy: Any, data: Any, **kwargs: Any) -> Any:
    return original(self, logprobs, entropy.detach(), data, **kwargs)


def weighed_by_tokens(original: Wrap, batch: Any, config: Any) -> Any:
    return original(batch, replace(config, normalisation="token_mean"))


def longer(original: Wrap, batch: Any, config: Any) -> Any:
    return original(batch, replace(config, constant_length=config.constant_length + 1))


def dual_clip(original: Wrap, ratio: Any, advantages: Any, lowest: float, highest: float, dual: Any = None) -> Any:
    return original(ratio, advantages, lowest, highest, 3.0)


def configured(**changes: Any) -> Wrap:
    """Other settings of AReaL's actor."""

    def wrap(original: Wrap, *args: Any, **kwargs: Any) -> Any:
        return replace(original(*args, **kwargs), **changes)

    return wrap


def masked_for_clamped(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), action="mask")


def summed_for_averaged(original: Wrap, values: Any, rows: Any, counted: Any = None) -> Any:
    return original(values, rows, counted) * torch.bincount(rows)[rows]


def one_row(original: Wrap, *args: Any) -> Any:
    return torch.zeros_like(original(*args))


def never_clipped(original: Wrap, logprobs: Any, ratio: Any, advantages: Any, lowest: float, highest: float) -> Any:
    return original(logprobs, ratio, advantages, 0.0, 1e9)


def versions_late(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    tensors = original(*args, **kwargs)
    return {**tensors, "versions": tensors["versions"] + 1}


def without_reference(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return [
        {name: tensor for name, tensor in group.items() if name != "ref_logp"} for group in original(*args, **kwargs)
    ]


def far_proximal(original: Wrap, logprobs: Any) -> Any:
    return original(logprobs) + 1.0


def filtered_by_sample(original: Wrap, group: Any, config: Any) -> bool:
    return float(group["rewards"].double().std()) >= config.min_group_std


def gap_unreported(original: Wrap, *args: Any, **kwargs: Any) -> Any:
    return replace(original(*args, **kwargs), logprob_gap=math.nan)


def another_task(original: Wrap, self: Any, index: int) -> Any:
    drawn = original(self, index)
    return next((task for task in self.tasks.values() if task.id != drawn.id), drawn)


def in_turn(original: Wrap, self: Any, index: int) -> Any:
    del original
    return self._in_turn(index)


def nothing_replayed(original: Wrap, self: Any, group: Any, version: int) -> Any:
    return replace(original(self, group, version), replayed=[])


def nothing_restored(original: Wrap, self: Any, checkpoint: Path) -> None:
    del original, self, checkpoint


def of_the_newest_version(original: Wrap, episode: Any, *args: Any) -> Any:
    rows = original(episode, *args)
    return [replace(row, versions=np.where(row.loss_mask == 1, row.versions + 1, row.versions)) for row in rows]


def branches_from_the_start(original: Wrap, rewards: Any, forks: Any, config: Any) -> Any:
    del forks
    return original(rewards, {}, config)


def first_stretch(original: Wrap, stretches: Any, turn: int) -> Any:
    return original(stretches, min(turn, stretches[0][0]))
