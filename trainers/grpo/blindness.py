"""Does the model look? What becomes of its last turn when the screenshot that it answers is blanked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cua_agent.trajectory import Trajectory
from trainers.grpo.checks import not_finite
from trainers.grpo.credit import turn_numbers
from trainers.protocol import Batch, LossRecord

MOST_ROWS = 16
"""So many rows are looked at."""
_GREY = 127


def blind_gap(batch: Batch, loss_and_gradients: Callable[[Batch], LossRecord]) -> float:
    """Mean exp|dlogp| over the tokens of the last turn of rows of `batch`, between what `loss_and_gradients` of a
    trainer makes of them without the last screenshot and what they were sampled with. A model that looks is far above
    the step's `logprob_gap`; one that does not is at it. NaN when no row has a screenshot and a trained token, or no
    update can be made of them.
    """
    blind = blinded(batch)
    if not blind.trajectories or not_finite(blind):
        return float("nan")
    return loss_and_gradients(blind).metrics["logprob_gap"]


def blinded(batch: Batch) -> Batch:
    """The first `MOST_ROWS` rows that have a screenshot: the last one grey, and only their last turn trained."""
    rows = [row for row in batch.trajectories if row.images and row.loss_mask.any()][:MOST_ROWS]
    return Batch([_blinded(row) for row in rows], [0.0] * len(rows))


def _blinded(row: Trajectory) -> Trajectory:
    numbers = turn_numbers(row.loss_mask)
    mask = np.zeros_like(row.loss_mask)
    mask[np.flatnonzero(row.loss_mask)[numbers == numbers[-1]]] = 1
    blank = np.full_like(row.images[-1], _GREY)
    return replace(row, images=[*row.images[:-1], blank], loss_mask=mask, turns=row.turns[-1:])
