"""What if another loss had been trained with? One recorded batch under several losses, at the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich import box
from rich.table import Table

from trainers.compare.escaping import prose
from trainers.components import build_components
from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.overrides import parse_override
from trainers.config.saved import nested, settings_of
from trainers.grpo.advantages import batch_of
from trainers.parity.cases import Weights, replayable
from trainers.parity.errors import Arrays, distance
from trainers.parity.recording import Recording
from trainers.parity.replay import REFERENCE, PartsFor, Side, on_side, playing_nothing
from trainers.protocol import LossRecord
from trainers.run.checkpoint import load_weights

_PLAIN = {"loss.ratio_level": "token", "loss.clip_epsilon_high": None, "loss.dual_clip": None}
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"loss.kind": "ppo_clip", "loss.ratio_level": "token"},
    "gspo": {"loss.kind": "ppo_clip", "loss.ratio_level": "sequence"},
    "cispo": {"loss.kind": "cispo", "loss.ratio_level": "token", "loss.dual_clip": None},
    "sapo": {"loss.kind": "sapo", **_PLAIN},
    "policy_gradient": {"loss.kind": "policy_gradient", **_PLAIN},
    "gigpo": {"loss.kind": "ppo_clip", "loss.ratio_level": "token", "advantage.credit": "gigpo"},
}
"""The keys that a name stands for; all others are as recorded."""

_SECTIONS = ("loss", "advantage")
_FIGURES = ("clip_fraction", "clip_fraction_high", "correction_fraction", "effective_sample_size")


@dataclass(frozen=True)
class Answer:
    """What `side` makes of the batch with `loss`: the loss, the norm of its gradient before clipping, shares of tokens
    (`figures`), and on the legacy side the cosine between its gradient and that of every other loss; on another the
    relative distance of its gradient from legacy's with the same loss (`off`). `refused`: why there is none of it."""

    loss: str
    side: Side
    value: float = math.nan
    grad_norm: float = math.nan
    figures: Mapping[str, float] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)
    off: float | None = None
    refused: str = ""


def what_if(
    recording: Recording,
    losses: Sequence[str],
    sides: Sequence[Side] = (),
    parts_for: PartsFor = build_components,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """The newest batch of `recording` under each of `losses` (see `config_with`), by legacy and then by `sides`.

    Raises `ConfigError` for a loss that is none, or that the keys do not allow.
    """
    configs = {loss: config_with(recording.config, loss) for loss in losses}
    gradients: dict[str, Arrays] = {}
    answers: list[Answer] = []
    for side in (REFERENCE, *sides):
        for loss, config in configs.items():
            try:
                record = _record(recording, on_side(config, side), parts_for)
            except (ConfigError, ValueError) as error:
                answer = Answer(loss, side, refused=str(error))
            else:
                mine = {name: gradient.numpy() for name, gradient in record.gradients.items()}
                answer = _answer(loss, side, record.metrics, mine, gradients)
                if side == REFERENCE:
                    gradients[loss] = mine
            answers.append(answer)
            on_answer(answer)
    return _symmetric(answers)


def config_with(recorded: TrainConfig, loss: str) -> TrainConfig:
    """The recorded configuration with `loss`: a name of `LOSSES`, and any number of "+key=value" of the sections loss
    and advantage. Raises `ConfigError`."""
    name, *changes = loss.split("+")
    if name not in LOSSES:
        raise ConfigError(f"losses={name}: not a loss; allowed: {', '.join(LOSSES)}, each with +key=value")
    weights: Weights = "lora" if recorded.lora.enabled else "full"
    settings = {**settings_of(replayable(recorded, weights)), **LOSSES[name]}
    for change in changes:
        key, value = parse_override(change)
        if key.partition(".")[0] not in _SECTIONS:
            raise ConfigError(f"losses={loss}: {key} is no key of a loss; allowed: loss.*, advantage.*")
        settings[key] = value
    return from_mapping(nested(settings))


def tables(answers: Sequence[Answer]) -> list[Table]:
    """For a terminal: what every loss came to on each side, and the cosines between legacy's gradients."""
    figures, cosines = (
        Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        for title in ("One batch, several losses", "Cosines between the gradients")
    )
    for table, head in ((figures, ["side"]), (cosines, ["", ""])):
        for name in head:
            table.add_column(name)
    figures.add_column("loss", overflow="fold")
    for name in ("value", "gradient", "clipped", "off legacy"):
        figures.add_column(name, justify="right", no_wrap=True)
    taken = [answer for answer in answers if not answer.refused]
    for answer in taken:
        side, loss, value, norm, clipped, *_, off = _cells(answer, [])
        figures.add_row(side, loss, value, norm, clipped, off)
    losses = [answer.loss for answer in taken if answer.side == REFERENCE]
    for number in range(1, len(losses) + 1):
        cosines.add_column(str(number), justify="right", no_wrap=True)
    for number, answer in enumerate(taken[: len(losses)], start=1):
        cosines.add_row(str(number), answer.loss, *_cells(answer, losses)[-len(losses) :])
    return [figures, cosines]


def refusals(answers: Iterable[Answer]) -> list[str]:
    """A line for each loss that a side does not have."""
    return [f"{answer.side} refuses {answer.loss}: {answer.refused}" for answer in answers if answer.refused]


def markdown(answers: Sequence[Answer], source: str) -> str:
    """The table for a file."""
    losses = list(dict.fromkeys(answer.loss for answer in answers))
    taken = [_cells(answer, losses) for answer in answers if not answer.refused]
    rows = [_header(losses), ["---"] * len(_header(losses)), *taken]
    lines = ["# What if", "", f"The newest batch of {prose(source)}, at the same weights.", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {prose(line)}" for line in refusals(answers))]
    return "\n".join(lines).rstrip() + "\n"


def to_json(answers: Iterable[Answer]) -> str:
    """All of it; what is not finite becomes null."""

    def safe(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: safe(each) for key, each in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps([safe(asdict(answer)) for answer in answers], indent=1)


def _record(recording: Recording, config: TrainConfig, parts_for: PartsFor) -> LossRecord:
    def parts(wanted: TrainConfig) -> Any:
        made = parts_for(wanted)
        if recording.checkpoint is not None:
            load_weights(recording.checkpoint, made.policy)
        return made

    rows = recording.batches()[-1].trajectories
    with playing_nothing(config, parts) as opened:
        return opened.trainer.loss_and_gradients(batch_of(rows, config.advantage))


def _answer(
    loss: str, side: Side, metrics: Mapping[str, float], mine: Arrays, gradients: Mapping[str, Arrays]
) -> Answer:
    norm = math.sqrt(sum(float((each.astype("float64") ** 2).sum()) for each in mine.values()))
    figures = {name: metrics[name] for name in _FIGURES}
    answer = Answer(loss, side, metrics["loss"], norm, figures)
    if side != REFERENCE:
        return replace(answer, off=distance(gradients[loss], mine).relative if loss in gradients else math.nan)
    return replace(answer, cosines={other: 1 - distance(each, mine).turned for other, each in gradients.items()})


def _symmetric(answers: Sequence[Answer]) -> list[Answer]:
    """With the cosines of each pair of losses on both of them."""
    pairs = {(a.loss, other): value for a in answers for other, value in a.cosines.items()}
    both = {**pairs, **{(other, loss): value for (loss, other), value in pairs.items()}}
    names = [answer.loss for answer in answers if answer.side == REFERENCE]
    return [
        replace(answer, cosines={other: both[answer.loss, other] for other in names if (answer.loss, other) in both})
        if answer.side == REFERENCE
        else answer
        for answer in answers
    ]


def _header(losses: Sequence[str]) -> list[str]:
    return [
        *("side", "loss", "value", "gradient", "clipped", "clipped above", "corrected", "effective", "off legacy"),
        *(f"cosine with {loss}" for loss in losses),
    ]


def _cells(answer: Answer, losses: Sequence[str]) -> list[str]:
    own = {answer.loss: 1.0, **answer.cosines} if answer.side == REFERENCE else {}
    return [
        *(answer.side, answer.loss, f"{answer.value:.3e}", f"{answer.grad_norm:.3e}"),
        *(f"{answer.figures[name]:.3f}" for name in _FIGURES),
        "" if answer.off is None else f"{answer.off:.1e}",
        *(f"{own[loss]:.4f}" if loss in own else "" for loss in losses),
    ]
