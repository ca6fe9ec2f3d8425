"""Screenshots as the service sends them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from cua_agent.envs.gbox.calls import UnusableReply


@dataclass(frozen=True)
class Screen:
    """One screenshot: RGB pixels, and the data URI it came as, which the grounding service takes back."""

    image: Image.Image
    uri: str = field(repr=False)


async def decode_screen(uri: object) -> Screen:
    """The screenshot in a data URI. Raises `UnusableReply` when it is none or a part of one."""
    if not isinstance(uri, str) or not uri.startswith("data:image/"):
        raise UnusableReply("an answer without a screenshot")
    return Screen(await asyncio.to_thread(_decode, uri), uri)  # tens of milliseconds for a real phone's screen


def _decode(uri: str) -> Image.Image:
    try:
        png = base64.b64decode(uri.partition(",")[2], validate=True)
        return Image.open(io.BytesIO(png)).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL: SyntaxError for a bad PNG
        raise UnusableReply(f"a broken screenshot ({error})") from error
