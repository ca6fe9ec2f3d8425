"""One row to imitate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cua_agent.trajectory import NO_VERSION, Trajectory


@dataclass(frozen=True)
class Example:
    """One row to imitate: `labels` is 1 where `input_ids` is to be predicted."""

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    images: list[npt.NDArray[np.uint8]]


def as_example(row: Trajectory) -> Example:
    """A demonstrated row; the expert's explored turns are not to be imitated."""
    labels = row.loss_mask * (row.versions != NO_VERSION)
    return Example(row.input_ids, labels.astype(np.int32), row.images)
