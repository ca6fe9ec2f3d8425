"""What goes in and out."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ActionType(StrEnum):
    CLICK = "CLICK"
    DOUBLE_TAP = "DOUBLE_TAP"
    LONG_PRESS = "LONG_PRESS"
    TYPE = "TYPE"
    SWIPE = "SWIPE"
    DRAG = "DRAG"
    BACK = "BACK"
    HOME = "HOME"
    RECENT = "RECENT"
    ENTER = "ENTER"
    WAIT = "WAIT"


@dataclass
class Action:
    action_type: ActionType
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    screenshot_base64: str = ""
    route: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    screenshot_bytes: bytes = b""


@dataclass(frozen=True)
class StepResult:
    observation: Observation
    done: bool = False
