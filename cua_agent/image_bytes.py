"""Images as bytes, and as `data:` URIs (RFC 2397) within pages and messages."""

from __future__ import annotations

import base64
import io

from PIL import Image

PNG_URI = "data:image/png;base64,"
"""What the URI of a PNG begins with."""


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG: lossless, quickly compressed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def png_uri(image: Image.Image) -> str:
    """The image as a URI that holds it as PNG."""
    return image_uri(png_bytes(image))


def image_uri(content: bytes, subtype: str = "png") -> str:
    """A URI that holds `content`, an image of the type `image/<subtype>`."""
    return f"data:image/{subtype};base64,{base64.b64encode(content).decode('ascii')}"
