"""What the process of an environment is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The browser, how the page is shown, and arguments of the tasks; `BrowserGymWorld` has the same options."""

    browser_path: str
    viewport: tuple[int, int] | None = None
    scale: float | None = None
    settle_s: float = 0.5
    task_kwargs: Mapping[str, Any] = field(default_factory=dict)
