"""What the vision tower makes of screenshots, kept by content: a screen that was seen before costs a hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cua_agent.image_hash import image_hash

MOST_BYTES = 2**28
"""Of the features kept: a screenshot of the built-in phone takes 40 KB, a large one of an 8B model 24 MB."""

Image = npt.NDArray[np.uint8]
Features = tuple[Tensor, ...]
"""Of one screenshot: what takes the place of its placeholders [tokens, width], and what deeper layers add to that."""


class Seeing(Protocol):
    """A policy with a vision tower; see `PolicyModel`."""

    @property
    def base_model(self) -> Any: ...

    def pixels(self, images: Sequence[Image]) -> tuple[Tensor, Tensor]: ...


class VisionFeatures:
    """Features of screenshots under the weights that the tower of `policy` has; beyond `most_bytes` those least
    recently asked for make room."""

    def __init__(self, policy: Seeing, most_bytes: int = MOST_BYTES) -> None:
        self._policy = policy
        self._most_bytes = most_bytes
        self._kept: dict[str, Features] = {}
        self._bytes = 0

    def of(self, images: Sequence[Image]) -> list[Features]:
        """The features of each of `images`, uint8 [H, W, 3]; what is not known goes through the tower, once."""
        keys = [image_hash(image) for image in images]
        asked = dict(zip(keys, images, strict=True))
        unknown = [key for key in asked if key not in self._kept]
        found = {key: self._kept.pop(key) for key in asked if key in self._kept}
        if unknown:
            found |= zip(unknown, self._compute([asked[key] for key in unknown]), strict=True)
            self._bytes += sum(_size(found[key]) for key in unknown)
        self._kept |= found
        self._make_room()
        return [found[key] for key in keys]

    def forget(self) -> None:
        """The tower's weights changed."""
        self._kept.clear()
        self._bytes = 0

    def _compute(self, images: Sequence[Image]) -> list[Features]:
        pixels, grids = self._policy.pixels(images)
        seen = self._policy.base_model.model.get_image_features(pixels, grids, return_dict=True)
        sizes = [len(tokens) for tokens in seen.pooler_output]
        deeper = [torch.split(layer, sizes) for layer in getattr(seen, "deepstack_features", None) or ()]
        return [tuple(part.clone() for part in parts) for parts in zip(seen.pooler_output, *deeper, strict=True)]

    def _make_room(self) -> None:
        while self._bytes > self._most_bytes:
            oldest = next(iter(self._kept))
            self._bytes -= _size(self._kept.pop(oldest))


@contextmanager
def in_place_of_tower(model: Any, features: Sequence[Features]) -> Iterator[None]:
    """Inside, the backbone `model` takes `features` for those of its input's images, whatever their pixels."""
    tokens, *deeper = zip(*features, strict=True)
    seen = SimpleNamespace(pooler_output=tokens, deepstack_features=[torch.cat(layer) for layer in deeper])
    model.get_image_features = lambda *_, **__: seen
    try:
        yield
    finally:
        del model.get_image_features


def _size(features: Features) -> int:
    return sum(part.nbytes for part in features)
