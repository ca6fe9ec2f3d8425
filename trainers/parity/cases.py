"""What is replayed: recorded batches as they are, and reshaped into everything that the backends have to agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from cua_agent.trajectory import Fork, Outcome, Trajectory, Turn
from trainers.config import CheckpointConfig, LoggingConfig, TrainConfig
from trainers.grpo.credit import trained_turns

Weights = Literal["full", "lora"]
WEIGHTS: tuple[Weights, ...] = ("full", "lora")

Reshape = Callable[[Sequence[Trajectory], int], list[Trajectory]]
"""From recorded rows (and the id of image placeholders) to those of a case."""


@dataclass(frozen=True)
class Case:
    """One way to replay a recording.

    `keys` replaces keys of the recorded configuration, named as on the command line. `moved`: how far the weights are
    from those that sampled, as a share of each parameter's size. `reshape` changes the recorded rows; with `rescored`
    they get the log-probs that they would have been sampled with, and with `drifted` these are moved to where every
    branch of the loss is taken. `budget`: tokens of a forward pass, as a share of the longest row (None: as recorded).
    `broken_after`: updates after which all sides but the first save, end, and go on in a fresh trainer. `refused_by`
    names sides that must refuse the case: a known difference. `weights`: the kind it is replayed on, if not both.
    """

    name: str
    about: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    moved: float = 0.0
    reshape: Reshape | None = None
    rescored: bool = False
    drifted: bool = False
    budget: float | None = None
    broken_after: int = 0
    refused_by: tuple[str, ...] = ()
    weights: Weights | None = None

    def rows(self, recorded: Sequence[Trajectory], image_token_id: int) -> list[Trajectory]:
        """The rows to replay, of recorded ones."""
        return list(recorded) if self.reshape is None else self.reshape(recorded, image_token_id)

    def config(self, recorded: TrainConfig, weights: Weights, longest: int) -> TrainConfig:
        """The configuration to replay with; `longest` is the length of the longest row."""
        keys = {**_PLAIN, **self.keys}
        if self.budget is not None:
            tokens = max(64, int(self.budget * longest))
            keys |= {"optim.micro_batch_tokens": tokens, "areal.packed_tokens": tokens}
        return with_keys(replayable(recorded, weights), keys)


_PLAIN = {"loss.decoupled": False, "loss.kl_coefficient": 0.0, "optim.updates_per_batch": 1}
"""What a recorded configuration may ask for and only some cases are about."""


def with_keys(config: TrainConfig, keys: Mapping[str, Any]) -> TrainConfig:
    """`config` with other values of the dotted `keys`."""
    for key, value in keys.items():
        section, name = key.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def replayable(recorded: TrainConfig, weights: Weights) -> TrainConfig:
    """The recorded configuration without what would blur a comparison: dropout, servers."""
    return replace(
        recorded,
        resume=None,
        threads=1,  # sides run side by side
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


def meeting(rows: Sequence[Trajectory], image_token_id: int) -> list[Trajectory]:
    """As `with_losses`, and the turns of all episodes begin in two states by turns."""
    out = with_losses(rows, image_token_id)
    return [replace(row, turns=tuple(_turn_in(f"{i % 2}") for i in range(trained_turns(row)))) for row in out]


def forked(rows: Sequence[Trajectory], _: int) -> list[Trajectory]:
    """In each group every other episode branched off that of the most turns, at its second one."""
    turns: dict[str, Counter[str]] = {}
    for row in rows:
        turns.setdefault(row.group_id, Counter())[row.episode_id] += trained_turns(row)
    forks: dict[str, Fork] = {}
    for of_group in turns.values():
        [(trunk, most)] = of_group.most_common(1)
        others = [name for name in of_group if name != trunk]
        forks |= {name: Fork(trunk, 1) for name in others[::2] if most > 1}
    return [replace(row, fork=forks.get(row.episode_id)) for row in rows]


DRIFTS = (0.0, 0.1, -0.1, 0.7, -0.7, 1.5, -1.5)
"""What is added to the log-probs of trained tokens in turn: their ratios become 1, 0.9, 1.1, 0.5, 2, 0.2 and 4.5."""


def drifted(rows: Sequence[Trajectory]) -> list[Trajectory]:
    """The rows as if policies all around had sampled them: ratios on both sides of every clip range and cap, with
    advantages of both signs."""
    out = []
    place = 0
    for row in rows:
        trained = row.loss_mask == 1
        count = int(trained.sum())
        drifts = np.resize(np.roll(DRIFTS, -place), count)
        logprobs = row.logprobs.copy()
        logprobs[trained] = np.minimum(logprobs[trained] + drifts, 0.0)
        out.append(replace(row, logprobs=logprobs))
        place = (place + count) % len(DRIFTS)
    return out


CASES = (
    Case("plain", "recorded batches as they are: screenshots, unequal lengths, the recorded token budgets"),
    Case("moved", "weights that moved away from those that sampled, ratios far off 1", moved=0.05, drifted=True),
    Case(
        "packed",
        "several micro-batches, several sequences packed in each",
        moved=0.05,
        drifted=True,
        budget=2.0,
        weights="full",
    ),
    Case(
        "text",
        "rows without screenshots between rows with them",
        moved=0.05,
        budget=2.0,
        reshape=mixed_with_text,
        rescored=True,
        weights="full",
    ),
    Case(
        "ragged",
        "groups with failed episodes, several rows an episode, rows that end with a prompt or exceed the token budget",
        moved=0.05,
        budget=0.5,
        reshape=with_losses,
        weights="full",
    ),
    Case("kl", "KL to the frozen reference", moved=0.05, keys={"loss.kl_coefficient": 0.1}),
    Case(
        "stale",
        "decoupled loss on tokens of older policies, some beyond the cap",
        moved=0.1,
        drifted=True,
        budget=2.0,
        keys={"loss.decoupled": True, "loss.behaviour_weight_cap": 1.2},
    ),
    Case(
        "knobs",
        "keys away from their defaults: temperature, estimator of the KL, no division by the deviation, a narrow clip "
        "range, momenta, weight decay, warm-up, gradient clipping",
        moved=0.05,
        rescored=True,
        drifted=True,
        keys={
            "rollout.temperature": 1.5,
            "loss.kl_coefficient": 0.05,
            "loss.kl_estimator": "k1",
            "loss.clip_epsilon": 0.05,
            "advantage.normalise_by_std": False,
            "optim.betas": (0.8, 0.9),
            "optim.weight_decay": 0.1,
            "optim.warmup_steps": 3,
            "optim.max_grad_norm": 0.05,
        },
    ),
    Case(
        "ours",
        "what only our loss computes: entropy bonus, mean over episodes, two updates per batch",
        moved=0.05,
        rescored=True,
        budget=2.0,
        keys={
            "rollout.temperature": 0.7,
            "loss.entropy_coefficient": 0.05,
            "loss.normalisation": "sequence_mean",
            "optim.updates_per_batch": 2,
        },
        refused_by=("phase3",),
        weights="full",
    ),
    Case(
        "reinforce",
        "what only our loss computes: policy gradient without ratios, a constant length",
        moved=0.05,
        keys={"loss.kind": "policy_gradient", "loss.normalisation": "constant", "loss.constant_length": 64},
        refused_by=("phase3",),
        weights="lora",
    ),
    Case(
        "gspo",
        "ratios of whole rows, a wider clip range upwards",
        moved=0.05,
        drifted=True,
        budget=2.0,
        keys={"loss.ratio_level": "sequence", "loss.clip_epsilon": 0.002, "loss.clip_epsilon_high": 0.004},
        weights="full",
    ),
    Case(
        "row_bounds",
        "weights of older policies by rows, clamped to two bounds",
        moved=0.05,
        drifted=True,
        budget=2.0,
        keys={
            "loss.decoupled": True,
            "loss.behaviour_level": "geometric",
            "loss.behaviour_action": "clamp",
            "loss.behaviour_weight_cap": 1.02,
            "loss.behaviour_weight_floor": 0.98,
        },
        weights="full",
    ),
    Case(
        "dual_clip",
        "clip-higher and dual clip on ratios to the sampling policy, rewards compared with those of the others (RLOO)",
        moved=0.05,
        drifted=True,
        keys={
            "loss.clip_epsilon_high": 0.3,
            "loss.dual_clip": 2.0,
            "advantage.normalise_by_std": False,
            "advantage.baseline": "leave_one_out",
        },
        weights="full",
    ),
    Case(
        "credit",
        "advantages of turns by the states that siblings met in (GiGPO), groups with failed episodes, several rows an "
        "episode",
        moved=0.05,
        drifted=True,
        budget=2.0,
        reshape=meeting,
        keys={"advantage.credit": "gigpo", "advantage.step_weight": 0.5, "advantage.discount": 0.8},
        weights="full",
    ),
    Case(
        "forked",
        "advantages of the stretches between the points where episodes branched off",
        moved=0.05,
        drifted=True,
        budget=2.0,
        reshape=forked,
        keys={"advantage.credit": "fork", "advantage.step_weight": 0.5},
        weights="full",
    ),
    Case(
        "sapo",
        "soft gates in place of the clip range",
        moved=0.05,
        drifted=True,
        keys={"loss.kind": "sapo", "loss.sapo_temperatures": (1.0, 2.0)},
        weights="lora",
    ),
    Case(
        "kl_bounds",
        "tokens of older policies left out by an estimate of the KL",
        moved=0.05,
        drifted=True,
        budget=2.0,
        keys={"loss.decoupled": True, "loss.behaviour_metric": "k3", "loss.behaviour_weight_cap": 0.2},
        weights="full",
    ),
    Case(
        "cispo",
        "what only our loss computes: clipped weights on the policy gradient",
        moved=0.05,
        drifted=True,
        keys={"loss.kind": "cispo", "loss.clip_epsilon_high": 0.3},
        refused_by=("phase3",),
        weights="lora",
    ),
    Case(
        "resumed",
        "saved after two updates, and gone on with in a fresh trainer",
        moved=0.05,
        keys={"optim.warmup_steps": 3, "optim.weight_decay": 0.1},
        broken_after=2,
    ),
)


def _turn_in(state: str) -> Turn:
    return Turn("", None, "", 0.0, 0.0, state=state)


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
