"""Runs sorted into arms: what one configuration did over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.compare.runs import SYNCHRONOUS, Run
from trainers.compare.settings import fingerprint, labels


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration under several seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The keys of its runs, which differ in the seed only."""
        return self.runs[0].settings

    @property
    def backend(self) -> str:
        """The backend of its runs."""
        return self.runs[0].backend

    @property
    def finished(self) -> tuple[Run, ...]:
        """Its runs that came to their end."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that means are made of: the finished ones, or all while none has finished."""
        return self.finished or self.runs


def sort_into_arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms in order of their first run, the one that others are compared with first: the synchronous backend's,
    if it is there."""
    by_configuration: dict[str, list[Run]] = {}
    for run in runs:
        by_configuration.setdefault(fingerprint(run.settings), []).append(run)
    groups = list(by_configuration.values())
    names = labels([group[0].settings for group in groups])
    arms = [
        Arm(name, tuple(sorted(group, key=lambda run: run.seed))) for name, group in zip(names, groups, strict=True)
    ]
    return sorted(arms, key=lambda arm: arm.backend != SYNCHRONOUS)
