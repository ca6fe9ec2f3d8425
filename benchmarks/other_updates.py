"""The update as other libraries make it, for `bench_update.py`: TRL's GRPO trainer, and AReaL's own actor.

Both train the same parameters of the same checkpoint in float32 with the same loss, PPO-clip over the mean of all
trained tokens, and the same optimiser, clipping included. Their tensors are ready before the clock starts: how long
their own libraries take to make them is not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cua_agent.models.policy import PolicyModel
from cua_agent.models.sources import model_source
from cua_agent.trajectory import Trajectory
from trainers.config import TrainConfig
from trainers.protocol import Batch

ROWS = 8
"""Of a forward pass of TRL, its default."""


class Meter(Protocol):
    """What a side reports to; see `bench_update.py`."""

    def next_batch(self) -> Batch | None:
        """The next one to train on, None when that was the last; returns when it is this side's turn."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def report(self, loss: float, grad_norm: float) -> None: ...


def areal_updates(config: TrainConfig, policy: PolicyModel, directory: Path, meter: Meter, *, packed: bool) -> None:
    """AReaL's actor around the model that it loads itself, on one process: advantages and update, as its trainer calls
    them. Packed as ours, its sequences see each other without flash attention, which needs a GPU; else every row has a
    forward pass of its own."""
    from trainers.areal.process import prepare_process

    prepare_process(directory)
    from areal.api.cli_args import MicroBatchSpec
    from areal.engine.fsdp_engine import FSDPPPOActor
    from areal.utils import stats_tracker

    from trainers.areal.config.translation import ppo_actor_config
    from trainers.areal.tensors import rows_to_tensors
    from trainers.areal.train.phase2_learner import start_actor

    class Actor(FSDPPPOActor):  # type: ignore[misc]
        def _create_device_model(self) -> None:
            super()._create_device_model()
            freeze_as(policy, self.model)

    def groups_of(batch: Batch) -> list[dict[str, Any]]:
        rows: dict[str, list[Trajectory]] = {}
        for row in batch.trajectories:
            rows.setdefault(row.group_id, []).append(row)
        return [of_areal(rows_to_tensors(policy, group), policy) for group in rows.values()]

    actor: Any = None
    while (batch := meter.next_batch()) is not None:
        groups = groups_of(batch)
        if actor is None:
            own = ppo_actor_config(config)
            spec = own.mb_spec if packed else MicroBatchSpec(n_mbs=len(batch.trajectories))
            actor = start_actor(Actor(replace(own, mb_spec=spec)), config)
        meter.start()
        actor.ppo_update(actor.compute_advantages(groups))
        meter.stop()
        stats = stats_tracker.export_all()
        meter.report(stats["ppo_actor/update/actor_loss/avg"], stats["ppo_actor/update/grad_norm"])


def of_areal(tensors: dict[str, Any], policy: PolicyModel) -> dict[str, Any]:
    """What AReaL's own workflows leave of a group: no entries of ours, and pixels in place of their bytes."""
    ours = {"predicts", "actions", "group", "episode", "weight", "multi_modal_input"}
    images = [
        {**row, "pixel_values": policy.pixel_values(row["pixel_values"], row["image_grid_thw"])} if row else row
        for row in tensors.get("multi_modal_input", ())
    ]
    kept = {name: value for name, value in tensors.items() if name not in ours}
    return {**kept, "multi_modal_input": images} if images else kept


def freeze_as(policy: PolicyModel, model: Any) -> None:
    """Train of `model` what is trained of `policy`."""
    trained = {name for name, _ in policy.trainable_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def trl_updates(
    config: TrainConfig, policy: PolicyModel, directory: Path, meter: Meter, *, package: Path, checkpointed: bool
) -> None:
    """TRL's trainer and its loop; in place of what it would generate it gets the recorded batch. `checkpointed` is its
    default: activations are computed again in the backward pass."""
    sys.path.append(str(package))
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForImageTextToText.from_pretrained(
        model_source(config.model.path), dtype=torch.float32, attn_implementation="sdpa"
    )
    freeze_as(policy, model)
    batch = meter.next_batch()
    assert batch is not None
    if len(batch.trajectories) % ROWS:
        raise SystemExit(f"{len(batch.trajectories)} rows: TRL takes a multiple of {ROWS}, record with context=full")
    recorded: dict[str, Any] = of_trl(batch.trajectories, batch.advantages, policy)

    class Recorded(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, *_: Any) -> dict[str, Any]:
            return dict(recorded)

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Waits for this side's turn before each step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

        def on_log(self, _args: Any, _state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return  # the summary at the end
            meter.report(logs["loss"], logs["grad_norm"])
            if (following := meter.next_batch()) is None:
                control.should_training_stop = True
            else:
                recorded.update(of_trl(following.trajectories, following.advantages, policy))

    optim, loss = config.optim, config.loss
    settings = GRPOConfig(
        output_dir=str(directory / "trl"),
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=len(batch.trajectories) // ROWS,
        num_generations=config.rollout.group_size,
        max_steps=10**6,
        loss_type="dapo",  # the mean over all tokens
        beta=0.0,
        epsilon=loss.clip_epsilon,
        epsilon_high=loss.clip_epsilon_high,
        temperature=config.rollout.temperature,
        learning_rate=optim.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        gradient_checkpointing=checkpointed,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Recorded(
        model,
        reward_funcs=lambda **_: [],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["recorded"] * len(batch.trajectories)}),
        processing_class=policy.tokenizer,
        callbacks=[Turns()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def of_trl(rows: Sequence[Trajectory], advantages: Sequence[float], policy: PolicyModel) -> dict[str, Any]:
    """`rows` as TRL's rollouts with tools leave them: the prompt, padded on the left, ends where the first turn begins;
    what follows is the completion, in which `tool_mask` tells what was sampled."""
    starts = [int(row.loss_mask.argmax()) for row in rows]

    def right(parts: Iterator[Any], fill: float = 0) -> Tensor:
        padded: Tensor = pad_sequence([torch.as_tensor(np.array(part)) for part in parts], True, fill)
        return padded

    def left(parts: Iterator[Any], fill: float = 0) -> Tensor:
        return right((part[::-1] for part in parts), fill).flip(-1)

    def both(of: Callable[[Trajectory], Any], fill: float = 0) -> tuple[Tensor, Tensor]:
        cut = list(zip(map(of, rows), starts, strict=True))
        return left((part[:start] for part, start in cut), fill), right((part[start:] for part, start in cut), fill)

    prompt_ids, completion_ids = both(lambda row: row.input_ids, policy.special.pad_id)
    prompt_mask, completion_mask = both(lambda row: np.ones(len(row), np.int64))
    tool_mask = both(lambda row: row.loss_mask)[1]
    images = [image for row in rows for image in row.images]
    pixels, grids = policy.pixels(images)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "old_per_token_logps": both(lambda row: row.logprobs)[1],
        "advantages": torch.tensor(advantages, dtype=torch.float32),
        "num_items_in_batch": tool_mask.sum(),
        "pixel_values": pixels,
        "image_grid_thw": grids,
        "num_images": [len(row.images) for row in rows],
        "mm_token_type_ids": (torch.cat([prompt_ids, completion_ids], 1) == policy.special.image_token_id).long(),
    }
