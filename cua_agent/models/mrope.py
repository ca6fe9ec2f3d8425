"""Multimodal rotary position ids (M-RoPE) of Qwen2-VL, Qwen2.5-VL and Qwen3-VL for rows of text and still images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt


def mrope_positions(is_image: npt.NDArray[np.bool_], grids: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Position ids [3, L] (temporal, height, width) of a row (Qwen2-VL, arXiv:2409.12191, section 2.1).

    `is_image` [L] marks image placeholders; `grids` holds (rows, columns) of each image in tokens, in order. A text
    token advances all three ids by one. The tokens of an image that starts at position p have ids
    (p, p + row, p + column), and the text after it goes on at p + max(rows, columns). Raises `ValueError` when
    placeholders and images do not match.
    """
    placeholders = np.flatnonzero(is_image)
    sizes = np.array([rows * columns for rows, columns in grids], dtype=np.int64)
    if len(placeholders) != sizes.sum():
        raise ValueError(
            f"{len(placeholders)} image placeholders in the row, but its {len(grids)} images need {sizes.sum()}"
        )
    ends = np.cumsum(sizes)
    firsts, lasts = placeholders[ends - sizes], placeholders[ends - 1]
    if np.any(lasts - firsts + 1 != sizes):
        raise ValueError("the placeholders of one image must be consecutive")

    advance = np.where(is_image, 0, 1)
    advance[lasts] = [max(grid) for grid in grids]
    positions = np.empty((3, len(is_image)), dtype=np.int64)
    positions[:] = np.cumsum(advance) - advance
    for first, last, grid in zip(firsts, lasts, grids, strict=True):
        positions[1:, first : last + 1] += _rows_and_columns(grid)
    return positions


@lru_cache(maxsize=64)
def _rows_and_columns(grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Row and column of each token of an image, [2, rows * columns]."""
    rows, columns = grid
    return np.stack(np.divmod(np.arange(rows * columns), columns))
