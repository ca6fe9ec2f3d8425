"""One episode as a row that people can look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cua_agent.agent import Episode
from cua_agent.rewards import RewardValues, reward_parts
from cua_agent.secrets import MASK
from cua_agent.trajectory import Trajectory
from trainers.episodes.files import EVALUATION
from trainers.protocol import EpisodeSpec

SHOWN = 2000
"""Most characters of an answer to a validator, or of a validator's description."""
_BETWEEN = "\n\x1e\n"

Mask = Callable[[str], str]
"""Puts `***` for what is or looks like a key; `cua_agent.secrets.masker` makes one."""


@dataclass(frozen=True)
class Ended:
    """An episode that ended on `device`, begun under policy `version`, at `time` (of `time.time`). `screens` are what
    was seen before each turn and at the end; None for those that are not kept. `decode` gives the text of a token id.
    """

    spec: EpisodeSpec
    episode: Episode
    version: int
    time: float
    screens: Sequence[Image.Image | None]
    reward: RewardValues
    decode: Callable[[int], str]
    device: int = 0


def is_evaluation(spec: EpisodeSpec) -> bool:
    """Whether the episode belongs to an evaluation."""
    return spec.group_id.startswith(EVALUATION)


def record_of(ended: Ended, screens: Sequence[str | None], mask: Mask) -> dict[str, Any]:
    """The row, with the names of the screens' files; secrets of the task, and what `mask` finds, read `***`."""
    spec, episode = ended.spec, ended.episode
    parts = reward_parts(
        episode.outcome, episode.score, ended.reward, episode.turns, episode.side_effects, episode.reward
    )
    given = 0 if spec.begin is None else spec.begin.turn  # turns of the episode that it branched off
    sampled = [turn for row in episode.trajectories for turn in _sampled(row, ended.decode)]
    tokens: list[list[tuple[str, float, int]]] = [[]] * given + sampled
    row: dict[str, Any] = {
        "id": spec.episode_id,
        "group": spec.group_id,
        "evaluation": is_evaluation(spec),
        "task": spec.task.id,
        "category": spec.task.category,
        "goal": episode.goal,
        "seed": spec.seed,
        "version": ended.version,
        "time": ended.time,
        "outcome": episode.outcome.value,
        "score": episode.score,
        "reward": episode.reward,
        "parts": parts,
        "failure": None if episode.failure is None else str(episode.failure) or type(episode.failure).__name__,
        "device": ended.device,
        "reset_s": round(episode.reset_s, 3),
        "broken_off": _broken_off(ended),
        "verdict": {
            "validator": episode.verdict.validator[:SHOWN],
            "rule": episode.verdict.rule[:SHOWN],
            "start": {str(key): str(value)[:SHOWN] for key, value in episode.verdict.start.items()},
            "asked": [[str(text)[:SHOWN] for text in pair] for pair in episode.verdict.asked],
        },
        "turns": [_turn(turn, screen) for turn, screen in zip(episode.turns, screens, strict=False)],
        "final": screens[-1] if screens else None,
    }
    masked: dict[str, Any] = _masked(row, spec.task.secrets, mask)
    for turn, (before, after) in enumerate(zip(row["turns"], masked["turns"], strict=True)):
        # Pieces of a secret are no less secret.
        after["tokens"] = tokens[turn] if turn < len(tokens) and before["text"] == after["text"] else []
    return masked


def _broken_off(ended: Ended) -> list[Any] | None:
    """What an episode was waiting for when it was lost, and for how many seconds."""
    if ended.episode.failure is None or not ended.episode.phases:
        return None
    what, since = ended.episode.phases[-1]
    return [what, round(ended.time - since, 1)]


def _turn(turn: Any, screen: str | None) -> dict[str, Any]:
    return {
        "text": turn.text,
        "action": turn.action,
        "result": turn.result,
        "generate_s": round(turn.generate_s, 3),
        "env_s": round(turn.env_s, 3),
        "point": turn.point,
        "touch": [{**vars(touch), "place": vars(touch.place)} for touch in turn.touch],
        "truncated": turn.truncated,
        "screen": screen,
    }


def _sampled(row: Trajectory, decode: Callable[[int], str]) -> Iterator[list[tuple[str, float, int]]]:
    """For each turn of a token row: text, log-probability and policy version of its sampled tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.loss_mask, [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield [
            (decode(int(row.input_ids[i])), round(float(row.logprobs[i]), 3), int(row.versions[i]))
            for i in range(start, stop)
        ]


def masked_texts(texts: Sequence[str], secrets: Sequence[str], mask: Mask) -> list[str]:
    """`texts` with `***` for the `secrets` of a task, and for what `mask` finds."""
    joined = _BETWEEN.join(texts)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        joined = joined.replace(secret, MASK)
    found = mask(joined).split(_BETWEEN)
    return found if len(found) == len(texts) else [mask(text) for text in texts]


def _masked(row: dict[str, Any], secrets: Sequence[str], mask: Mask) -> Any:
    """`row` with all its texts masked at once; keys stay. Where there is nothing to mask it is `row` itself."""
    texts: list[str] = []
    _gather(row.values(), texts)
    masked = masked_texts(texts, secrets, mask)
    return row if masked == texts else _with_texts(row, iter(masked))


def _gather(values: Iterable[Any], texts: list[str]) -> None:
    """Append all texts in `values` to `texts`, in the order in which `_with_texts` puts them back."""
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            _gather(value.values(), texts)
        elif isinstance(value, list):
            _gather(value, texts)


def _with_texts(value: Any, texts: Iterator[str]) -> Any:
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {key: _with_texts(item, texts) for key, item in value.items()}
    return [_with_texts(item, texts) for item in value] if isinstance(value, list) else value
