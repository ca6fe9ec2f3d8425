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
    version: str


class BoxConfig(Reply):
    cpu: float
    envs: dict[str, str]
    labels: dict[str, str]
    memory: float  # MiB
    os: BoxOs
    storage: float  # GiB
    device_type: Literal["virtual", "physical"] | None = None
    working_dir: str


class BoxReply(Reply):
    id: str
    type: BoxType
    status: Status
    config: BoxConfig
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    reason: str | None = None


class BoxList(Reply):
    data: list[BoxReply]
    page: int
    page_size: int
    total: int


class Resolution(Reply):
    width: float
    height: float


class Display(Reply):
    orientation: Literal["portrait"] = "portrait"
    resolution: Resolution


class CommandReply(Reply):
    stdout: str
    stderr: str
    exit_code: int


class SettingsReply(Reply):
    scale: float


class Picture(Reply):
    uri: str
    presigned_url: str | None = None


class Pictures(Reply):
    before: Picture | None = None
    after: Picture | None = None
    trace: Picture | None = None


class ActionReply(Reply):
    action_id: str
    message: str
    screenshot: Pictures | None = None


class SpotReply(Reply):
    """(-1, -1): not found."""

    x: int
    y: int


class DragReply(Reply):
    start: SpotReply
    end: SpotReply


class Grounded(Reply):
    type: Literal["click", "drag", "scroll"]
    coordinates: SpotReply | DragReply
    direction: str | None = None


class GroundReply(Reply):
    id: str
    response: Grounded
