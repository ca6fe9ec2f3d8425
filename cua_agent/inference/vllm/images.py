"""Screenshots as a vLLM server takes them: PNG data URLs, resized by our own processor.

Image libraries differ in how they resize. A screenshot that already has its final size is not resized again by the
server, so that both sides see the same pixels and count the same tokens.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cua_agent.models.pixels import resize_screenshot

_FAST_COMPRESSION = 1


def data_url(processor: Any, image: npt.NDArray[np.uint8]) -> str:
    """A screenshot, uint8 [H, W, 3], resized and encoded."""
    buffer = io.BytesIO()
    resized = resize_screenshot(processor, image)
    Image.fromarray(resized).save(buffer, "PNG", compress_level=_FAST_COMPRESSION)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class EncodedImages:
    """The screenshots of running conversations, each encoded once although every later turn sends it again."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._encoded: dict[str, list[tuple[npt.NDArray[np.uint8], str]]] = {}

    async def urls(self, conversation_id: str, images: Sequence[npt.NDArray[np.uint8]]) -> list[str]:
        """Data URLs of `images`; those that the conversation showed before are taken from memory."""
        known = {id(image): url for image, url in self._encoded.get(conversation_id, ())}
        new = [image for image in images if id(image) not in known]
        if new:
            encoded = await asyncio.to_thread(lambda: [data_url(self._processor, image) for image in new])
            known |= {id(image): url for image, url in zip(new, encoded, strict=True)}
        urls = [known[id(image)] for image in images]
        self._encoded[conversation_id] = list(zip(images, urls, strict=True))
        return urls

    def release(self, conversation_id: str) -> None:
        self._encoded.pop(conversation_id, None)
