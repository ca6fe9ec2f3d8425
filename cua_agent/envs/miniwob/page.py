"""A MiniWoB++ page: its size, and the handles of Playwright that drive it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 160, 210
"""Size of a MiniWoB++ page in CSS pixels."""

CLOSE_TIMEOUT_S = 5.0


@dataclass
class MiniWobPage:
    """A page in its own context: Playwright's page, its DevTools session and the context to close."""

    context: Any
    page: Any
    devtools: Any

    async def close(self) -> None:
        """Close the context; a page that no longer answers is abandoned after `CLOSE_TIMEOUT_S`."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.context.close()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
