"""What the server answers, field by field as the SDK's response types read it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

BoxType = Literal["android", "linux"]
Status = Literal["pending", "running", "error", "terminated"]


class Reply(BaseModel):
    """Fields that are None are left out of the JSON."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class BoxOs(Reply):
    """The operating system of a box."""

    version: str


class BoxConfig(Reply):
    """What a box consists of."""

    cpu: float
    envs: dict[str, str]
    labels: dict[str, str]
    memory: float  # MiB
    os: BoxOs
    storage: float  # GiB
    device_type: Literal["virtual", "physical"] | None = None
    working_dir: str


class BoxReply(Reply):
    """A box."""

    id: str
    type: BoxType
    status: Status
    config: BoxConfig
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    reason: str | None = None


class BoxList(Reply):
    """A page of boxes."""

    data: list[BoxReply]
    page: int
    page_size: int
    total: int


class Resolution(Reply):
    """Size of a screen, pixels."""

    width: float
    height: float


class Display(Reply):
    """A screen."""

    orientation: Literal["portrait"] = "portrait"
    resolution: Resolution


class CommandReply(Reply):
    """What a shell command did."""

    stdout: str
    stderr: str
    exit_code: int


class SettingsReply(Reply):
    """The scale of screenshots."""

    scale: float


class Picture(Reply):
    """A picture, as data or behind a storage key."""

    uri: str
    presigned_url: str | None = None


class Pictures(Reply):
    """The screen around an action."""

    before: Picture | None = None
    after: Picture | None = None
    trace: Picture | None = None


class ActionReply(Reply):
    """An executed action."""

    action_id: str
    message: str
    screenshot: Pictures | None = None


class SpotReply(Reply):
    """(-1, -1): not found."""

    x: int
    y: int


class DragReply(Reply):
    """Where a drag starts and ends."""

    start: SpotReply
    end: SpotReply


class Grounded(Reply):
    """Where an action would happen."""

    type: Literal["click", "drag", "scroll"]
    coordinates: SpotReply | DragReply
    direction: str | None = None


class GroundReply(Reply):
    """What the grounding service found."""

    id: str
    response: Grounded
