"""What a micro-batch of AReaL's is told in main memory, so that a device need not be asked for it in an update.

A question, where a mask is set or how long sequences are, waits until the device has done all that it was given. Until
it is given something again it does nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from areal.utils.data import MicroBatchList
from torch import Tensor

from trainers.areal.tensors import TensorDict
from trainers.grpo.batching import places_of
from trainers.grpo.prefetch import prefetched


class Images(NamedTuple):
    """Of a micro-batch: `pixels` uint8 [patches, features], `PolicyModel.image_bytes`, on the device, and their `grids`
    int64 [n, 3] in main memory."""

    pixels: Tensor
    grids: Tensor


def note_places(batch: MicroBatchList) -> None:
    """Add `trained_at` int64 [N], where its `loss_mask` is set, to what the loss is given of a micro-batch, and to what
    the forward pass is given `predicts_at`, the positions before trained tokens, and `lengths` of its sequences,
    padding included. One place at least to predict at, because every process has to run its head."""
    for own, padded in zip(batch.mbs, batch.padded_mbs or (), strict=True):
        own["trained_at"] = places_of(own["loss_mask"])
        predicts = places_of(padded.pop("predicts"))
        padded["predicts_at"] = predicts if len(predicts) else predicts.new_zeros(1)
        padded["lengths"] = sequence_lengths(padded["cu_seqlens"])


def sequence_lengths(cu_seqlens: Tensor) -> tuple[int, ...]:
    """Lengths of packed sequences from their boundaries `cu_seqlens`, int [n + 1]."""
    return tuple(torch.diff(cu_seqlens).tolist())


def text_positions(lengths: tuple[int, ...]) -> Tensor:
    """Positions int64 [1, T] of packed sequences that start at 0 in each.

    They are how transformers recognises packed sequences and keeps them from attending to each other; its Qwen-VL
    models want them as a first row before the M-RoPE positions [3, 1, T].
    """
    return torch.cat([torch.arange(length) for length in lengths])[None]


def numbered_images(batch: TensorDict) -> tuple[TensorDict, list[Tensor]]:
    """`batch`, in which a row has its number for the bytes of its images, and these bytes: AReaL would put all of them
    together before the first forward pass can begin."""
    rows = batch.get("multi_modal_input")
    if rows is None:
        return batch, []
    numbered = [{**row, "pixel_values": torch.tensor([number])} if row else row for number, row in enumerate(rows)]
    return {**batch, "multi_modal_input": numbered}, [row.get("pixel_values") for row in rows]


def images_ahead(
    batch: MicroBatchList, pixels: Sequence[Tensor], device: torch.device
) -> Generator[Images | None, None, None]:
    """The images of one micro-batch after the other, None where there are none, which reach `device` one micro-batch
    ahead of the work. They are taken out of `batch`, which has numbers of rows for their `pixels`."""
    held = [(padded.pop("pixel_values", None), padded.pop("image_grid_thw", None)) for padded in batch.padded_mbs or ()]

    def make(numbers: Tensor | None, grids: Tensor | None) -> Images | None:
        if numbers is None or grids is None:
            return None
        return Images(torch.cat([pixels[number] for number in numbers.tolist()]).to(device), grids)

    return prefetched((partial(make, *each) for each in held), device)
