"""Writing what training does not need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cua_agent.error_text import type_and_line

logger = logging.getLogger(__name__)


class BestEffort:
    """Writes into `directory`, which it makes, until that fails for whatever reason: nobody trains worse for it, and
    that `what` is not recorded any further is told once."""

    def __init__(self, directory: Path, what: str) -> None:
        self._directory = directory
        self._what = what
        self.broken = False

    def __call__(self, write: Callable[[], object]) -> None:
        """Call `write`, unless that failed before."""
        if self.broken:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write()
        except Exception as error:
            self.broken = True
            logger.warning("%s are not recorded any further: %s", self._what, type_and_line(error))
