"""From rows to spans on tracks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from trainers.timeline.log import RUN

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""By process."""

WAITING, TRAINING, SYNC, EVALUATION = "waiting for rollouts", "training", "publishing weights", "evaluation"
RUN_TRACKS = (WAITING, TRAINING, SYNC, EVALUATION)
_PHASES = {"starting": "reset", "sampling": "model", "acting": "device", "scoring": "scoring"}
"""What an episode waits for, by what it told."""


@dataclass(frozen=True)
class Span:
    """Something that went on from `began` to `ended` (seconds since the epoch) on `track` of `group`."""

    group: str
    track: str
    name: str
    began: float
    ended: float
    args: Mapping[str, Any] = field(default_factory=dict)


def run_spans(rows: Rows) -> Iterator[Span]:
    """What the run did: waiting, training, publishing, evaluating."""
    for row in rows.get(RUN, ()):
        if "evaluation" in row:
            yield Span("run", EVALUATION, f"{row['evaluation']} after step {row['step']}", row["began"], row["ended"])
            continue
        name, at = f"step {row['step']}", row["collected"]
        yield Span("run", WAITING, name, at - row["rollout_s"], at)
        yield Span("run", TRAINING, name, at, at + row["train_s"])
        yield Span("run", SYNC, name, at + row["train_s"], at + row["train_s"] + row["sync_s"])


def device_spans(rows: Rows) -> Iterator[Span]:
    """What each device did: episodes, and within them what each waited for."""
    for process, track, row in _episodes(rows):
        group = f"devices of process {process}"
        args = {"task": row["task"], "version": row["version"]}
        yield Span(group, track, row["episode"], row["began"], row["ended"], args)
        for what, began, ended in phases_of(row):
            yield Span(group, track, what, began, ended)


def request_spans(rows: Rows) -> Iterator[Span]:
    """The model's requests, by the device that waited for them."""
    for process, track, row in _episodes(rows):
        turn = 0
        for what, began, ended in phases_of(row):
            if what == "model":
                turn += 1
                yield Span(f"model requests of process {process}", track, f"{row['episode']} turn {turn}", began, ended)


def phases_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What an episode waited for, from when to when: `reset`, `model`, `device`, `scoring`."""
    for (what, began), (_, ended) in pairwise([*row["phases"], (None, row["ended"])]):
        began = min(max(began, row["began"]), row["ended"])
        yield _PHASES.get(what, what), began, min(max(ended, began), row["ended"])


def _episodes(rows: Rows) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for process, own in rows.items():
        for row in own:
            if "episode" in row:
                yield process, f"device {row['device']}", row
