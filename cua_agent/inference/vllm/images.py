"""Screenshots as a vLLM server takes them: PNG data URLs, resized by our own processor, each sent once.

Image libraries differ in how they resize. A screenshot that already has its final size is not resized again by the
server, so that both sides see the same pixels and count the same tokens.

A server keeps the pixels that it was sent under the name that came with them, here a hash of the pixels. Later turns,
and other episodes that see the same screen, send the name alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cua_agent.image_bytes import png_uri
from cua_agent.inference.vllm.wire import SentImage
from cua_agent.models.pixels import resize_screenshot

_NAME_BYTES = 16
_MOST_NAMES = 65536


def sent_image(processor: Any, image: npt.NDArray[np.uint8], known: SentImages | None = None) -> SentImage:
    """A screenshot, uint8 [H, W, 3], resized and named; encoded unless it is `known` to the server."""
    resized = resize_screenshot(processor, image)
    name = hashlib.blake2b(repr(resized.shape).encode(), digest_size=_NAME_BYTES)
    name.update(resized.tobytes())
    named = SentImage(name.hexdigest())
    return named if known is not None and named.name in known else SentImage(named.name, data_url(resized))


def data_url(image: npt.NDArray[np.uint8]) -> str:
    """A screenshot, uint8 [H, W, 3], as PNG in a data URL."""
    return png_uri(Image.fromarray(image))


class SentImages:
    """Names of the images that a server was sent since it last forgot them, the latest `limit` of them.

    It may have dropped some to make room for others; it says so when one is asked for by its name alone.
    """

    def __init__(self, limit: int = _MOST_NAMES) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._limit = limit

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def add(self, images: Iterable[SentImage]) -> None:
        """The server has answered a request with `images`."""
        for image in images:
            self._names[image.name] = None
            self._names.move_to_end(image.name)
        while len(self._names) > self._limit:
            self._names.popitem(last=False)

    def forget(self) -> None:
        """The server has none of them any more, or nobody knows which."""
        self._names = OrderedDict()


class NamedImages:
    """The screenshots of running conversations, each named once although every later turn shows it again."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._named: dict[str, list[tuple[npt.NDArray[np.uint8], str]]] = {}

    async def of(
        self, conversation_id: str, images: Sequence[npt.NDArray[np.uint8]], known: SentImages
    ) -> list[SentImage]:
        """`images` as a server takes them: by name those that it was sent before (`known`)."""
        names = {id(image): name for image, name in self._named.get(conversation_id, ())}
        sent = [SentImage(names[id(image)]) if names.get(id(image)) in known else None for image in images]
        if None in sent:
            new = [image for image, each in zip(images, sent, strict=True) if each is None]
            made = iter(await asyncio.to_thread(lambda: [sent_image(self._processor, image, known) for image in new]))
            sent = [each or next(made) for each in sent]
        result = [each for each in sent if each is not None]
        self._named[conversation_id] = [(image, each.name) for image, each in zip(images, result, strict=True)]
        return result

    def release(self, conversation_id: str) -> None:
        self._named.pop(conversation_id, None)
