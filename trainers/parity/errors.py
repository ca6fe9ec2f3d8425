"""How far two results are apart. Everything is taken in float64; what cannot be compared is infinitely far apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

FAR = math.inf


@dataclass(frozen=True)
class Distance:
    """Between two sets of tensors, each taken as one long vector.

    `relative`: |theirs - ours| / |ours|. `turned`: 1 - the cosine of the angle between them, as half the squared
    distance of the unit vectors, which keeps its digits where the cosine itself rounds to 1.
    """

    relative: float
    turned: float


def distance(ours: Arrays, theirs: Arrays) -> Distance:
    """How far `theirs` is from `ours`; tensors are matched by name, and every name and shape must be on both sides."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return Distance(FAR, FAR)
    own, their, apart = (_norm(ours), _norm(theirs), _norm_of_difference(ours, theirs, 1.0, 1.0))
    if not (math.isfinite(own) and math.isfinite(their)):
        return Distance(FAR, FAR)
    if own == 0 or their == 0:
        same = own == their
        return Distance(0.0 if same else FAR, 0.0 if same else FAR)
    return Distance(apart / own, _norm_of_difference(ours, theirs, own, their) ** 2 / 2)


def mismatches(ours: Arrays, theirs: Arrays) -> int:
    """Entries that differ at all; of an array that one side lacks, or that has another shape or type, every entry."""
    count = 0
    for name in ours.keys() | theirs.keys():
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            count += max(1, *(x.size for x in (a, b) if x is not None))
        else:
            count += int((a != b).sum())
    return count


def _norm(arrays: Arrays) -> float:
    return math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays.values()))


def _norm_of_difference(ours: Arrays, theirs: Arrays, own_scale: float, their_scale: float) -> float:
    """|theirs / their_scale - ours / own_scale|."""
    total = 0.0
    for name, array in ours.items():
        gap = theirs[name].astype(np.float64) / their_scale - array.astype(np.float64) / own_scale
        total += float(np.square(gap).sum())
    return math.sqrt(total)
