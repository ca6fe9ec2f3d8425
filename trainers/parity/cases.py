"""What is replayed: recorded batches as they are, and reshaped into everything that the backends have to agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import CheckpointConfig, LoggingConfig, TrainConfig

Weights = Literal["full", "lora"]
WEIGHTS: tuple[Weights, ...] = ("full", "lora")

ALL_AT_ONCE = 1 << 16
"""A token budget that one micro-batch holds a whole batch in."""

Reshape = Callable[[Sequence[Trajectory], int], list[Trajectory]]
"""From recorded rows (and the id of image placeholders) to those of a case."""


@dataclass(frozen=True)
class Case:
    """One way to replay a recording.

    `moved`: how far the weights are from those that sampled, as a share of each parameter's size; recorded log-probs
    are off-policy by that. `loss` replaces keys of `LossConfig`. `split`: several micro-batches, several rows each.
    `rescored`: what was reshaped gets the log-probs that it would have been sampled with.
    """

    name: str
    about: str
    moved: float = 0.0
    loss: dict[str, Any] = field(default_factory=dict)
    reshape: Reshape | None = None
    split: bool = False
    rescored: bool = False

    def rows(self, recorded: Sequence[Trajectory], image_token_id: int) -> list[Trajectory]:
        """`recorded` as the case wants its rows: shortened, split, packed."""
        return list(recorded) if self.reshape is None else self.reshape(recorded, image_token_id)

    def config(self, recorded: TrainConfig, weights: Weights, longest: int) -> TrainConfig:
        """The configuration to replay with; `longest` is the length of the longest row."""
        budget = max(64, 2 * longest) if self.split else ALL_AT_ONCE
        replayed = replayable(recorded, weights)
        return replace(
            replayed,
            loss=replace(recorded.loss, **{"decoupled": False, "kl_coefficient": 0.0, **self.loss}),
            optim=replace(replayed.optim, updates_per_batch=1, micro_batch_tokens=budget),
            areal=replace(recorded.areal, packed_tokens=budget),
        )


def replayable(recorded: TrainConfig, weights: Weights) -> TrainConfig:
    """The recorded configuration without what would blur a comparison: half precision, dropout, servers."""
    return replace(
        recorded,
        resume=None,
        threads=1,  # sides run side by side
        model=replace(recorded.model, dtype="float32"),
        lora=replace(recorded.lora, enabled=weights == "lora", dropout=0.0),
        optim=replace(recorded.optim, learning_rate=_learning_rate(recorded, weights)),
        inference=replace(recorded.inference, name="local"),
        checkpoint=CheckpointConfig(),
        logging=LoggingConfig(tensorboard=False, save_trajectories=0),
    )


def _learning_rate(recorded: TrainConfig, weights: Weights) -> float:
    """Of the other kind of weights: adapters want about ten times the rate."""
    factor = {("full", True): 0.1, ("lora", False): 10.0}.get((weights, recorded.lora.enabled), 1.0)
    return factor * recorded.optim.learning_rate


def mixed_with_text(rows: Sequence[Trajectory], image_token_id: int) -> list[Trajectory]:
    """Every other row without its screenshots, as if the agent had been shown none."""
    return [_without_images(row, image_token_id) if index % 2 else row for index, row in enumerate(rows)]


def with_losses(rows: Sequence[Trajectory], image_token_id: int) -> list[Trajectory]:
    """An episode of every other group is missing, one of the rest is lost to infrastructure, and episodes of several
    turns become two rows."""
    doomed: dict[str, str] = {}
    groups = list(dict.fromkeys(row.group_id for row in rows))
    for group in groups:
        rewards = {row.episode_id: row.reward for row in rows if row.group_id == group}
        (commonest, count), *_ = Counter(rewards.values()).most_common()
        if count > 1:  # what is left still differs
            doomed[group] = next(episode for episode, reward in rewards.items() if reward == commonest)
    missing = set(groups[::2])
    out: list[Trajectory] = []
    for row in rows:
        if doomed.get(row.group_id) != row.episode_id:
            out += _in_two(row, image_token_id)
        elif row.group_id not in missing:
            out.append(replace(row, outcome=Outcome.INFRA_ERROR))
    return out


CASES = (
    Case("plain", "recorded batches as they are: screenshots, unequal lengths, one micro-batch"),
    Case("moved", "the same on weights that moved away from those that sampled", moved=0.05),
    Case("packed", "several micro-batches, several sequences packed in each", moved=0.05, split=True),
    Case(
        "text",
        "rows without screenshots between rows with them",
        moved=0.05,
        split=True,
        reshape=mixed_with_text,
        rescored=True,
    ),
    Case(
        "ragged",
        "groups with failed episodes, several rows an episode, rows that end with a prompt",
        moved=0.05,
        reshape=with_losses,
    ),
    Case("kl", "KL to the frozen reference", moved=0.05, loss={"kl_coefficient": 0.1}),
    Case(
        "stale",
        "decoupled loss on tokens of older policies, some beyond the cap",
        moved=0.1,
        split=True,
        loss={"decoupled": True, "behaviour_weight_cap": 1.2},
    ),
)


def _without_images(row: Trajectory, image_token_id: int) -> Trajectory:
    return _cut(replace(row, images=[]), row.input_ids != image_token_id)


def _in_two(row: Trajectory, image_token_id: int) -> list[Trajectory]:
    """Two rows that train the first and the second half of the row's turns; the row itself when it has one turn."""
    mask = row.loss_mask.astype(bool)
    starts = np.flatnonzero(mask & ~np.roll(mask, 1))
    if len(starts) < 2:
        return [row]
    middle = starts[len(starts) // 2]
    first = np.arange(len(row)) < middle  # ends with a prompt that nobody answered
    placeholders = first & (row.input_ids == image_token_id)
    shown = int((placeholders & ~np.roll(placeholders, 1)).sum())  # an image is an unbroken row of placeholders
    return [
        _cut(replace(row, images=row.images[:shown], weight=row.weight / 2), first),
        replace(row, loss_mask=np.where(first, 0, row.loss_mask), weight=row.weight / 2),
    ]


def _cut(row: Trajectory, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Trajectory:
    arrays = {name: getattr(row, name)[kept] for name in ("input_ids", "loss_mask", "logprobs", "versions")}
    return replace(row, **arrays)
