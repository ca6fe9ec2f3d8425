"""Which checkpoints a run keeps: its own, and those of the runs that it takes the place of."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

from cua_agent.scratch import is_abandoned
from trainers.config.saved import read_about
from trainers.protocol import TrainerState
from trainers.run.checkpoint_files import CheckpointError, prune_checkpoints, read_state
from trainers.run.lineage import lineage_of

CONTINUES = "continues"
"""Key of `run.json`: the run goes on by itself (`resume=auto`) in the place of the one that it was resumed from."""


def prune_lineage(directory: Path, *, keep: int) -> None:
    """Of the run in `directory`, which has just written a checkpoint, and of the dead ones that it continues, delete
    all periodic checkpoints but the newest `keep` of all, and what the newer ones replace: `last`, and a `best` that is
    no better. A run that came to its end, or that somebody went on from by hand, stays as it is."""
    left = prune_checkpoints(directory / "checkpoints", keep=keep)
    best = _state(directory / "checkpoints" / "best")
    for former in _continued(directory):
        checkpoints = former / "checkpoints"
        left += prune_checkpoints(checkpoints, keep=max(keep - left, 0))
        shutil.rmtree(checkpoints / "last", ignore_errors=True)
        if not _is_better(_state(checkpoints / "best"), best):
            shutil.rmtree(checkpoints / "best", ignore_errors=True)


def _continued(directory: Path) -> list[Path]:
    """The directories whose place the run in `directory` takes, newest first."""
    found = []
    parts = [part.directory for part in reversed(lineage_of(directory).parts)]
    for later, former in pairwise(parts):
        goes_on = read_about(later).get(CONTINUES) is True and is_abandoned(former)
        if not goes_on or (former / "summary.json").is_file():
            break
        found.append(former)
    return found


def _is_better(former: TrainerState | None, best: TrainerState | None) -> bool:
    """Whether `former` is a best that `best` does not replace."""
    if former is None or best is None:
        return former is not None
    return (former.best_success or 0.0) > (best.best_success or 0.0)


def _state(checkpoint: Path) -> TrainerState | None:
    try:
        return read_state(checkpoint)
    except CheckpointError:
        return None
