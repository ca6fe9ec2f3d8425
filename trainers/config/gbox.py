"""Boxes of the GBox service: where they come from, how they are kept, how patient a call is."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.envs.gbox.settings import BoxType, GBoxSettings, Reset
from trainers.config.types import Name, without_user
from trainers.config.validation import STRICT

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(without_user)]
KeyReference = Annotated[str, Field(pattern=r"^\$\{oc\.env:\w+\}$")]
ANDROID_FAMILIES = ("battery", "brightness", "timeout", "toggle")
"""Task families whose start a real phone can be put into (`cua_agent.envs.gbox.start`)."""

_DEFAULTS = GBoxSettings()


@dataclass(frozen=True, config=STRICT)
class GBoxConfig(GBoxSettings):
    """gbox: boxes of the GBox service, or of a local one."""

    base_url: Url | None = Field(
        default=_DEFAULTS.base_url, description="address of the service; null: GBOX_CLIENT_BASE_URL, else the cloud"
    )
    api_key: KeyReference | None = Field(
        default=_DEFAULTS.api_key,
        repr=False,
        description="null: the variable GBOX_API_KEY; another one: '${oc.env:NAME}', never the key itself",
    )
    box: BoxType = Field(default=_DEFAULTS.box, description="kind of box")
    reset: Reset = Field(
        default=_DEFAULTS.reset,
        description="start of an episode: a local GBox's own command, a real phone's settings, or a new box",
    )
    run: Name | None = Field(default=_DEFAULTS.run, description="label run of boxes; null: the run directory's name")
    purpose: Name = Field(default=_DEFAULTS.purpose, description="label purpose of boxes")
    expires_in_s: float = Field(default=_DEFAULTS.expires_in_s, ge=60, description="life of a box, in seconds")
    max_age_s: float = Field(
        default=_DEFAULTS.max_age_s, gt=0, description="age at which a box is lent no more; leave time for an episode"
    )
    max_episodes: int | None = Field(
        default=_DEFAULTS.max_episodes, ge=1, description="episodes after which a box is replaced; null: any number"
    )
    prewarm: int = Field(default=_DEFAULTS.prewarm, ge=0, description="boxes kept ready beyond those in use")
    scale: float = Field(default=_DEFAULTS.scale, gt=0.1, le=1, description="size of screenshots, of the display's")
    screenshot_delay_s: float = Field(
        default=_DEFAULTS.screenshot_delay_s, ge=0, le=30, description="from an action to the screenshot after it"
    )
    call_timeout_s: float = Field(
        default=_DEFAULTS.call_timeout_s, gt=0, description="deadline of an action, screenshot or grounding"
    )
    command_timeout_s: float = Field(default=_DEFAULTS.command_timeout_s, ge=1, description="limit of a shell command")
    create_timeout_s: float = Field(
        default=_DEFAULTS.create_timeout_s, ge=1, le=300, description="limit of a box's creation"
    )
    quota_wait_s: float = Field(
        default=_DEFAULTS.quota_wait_s, ge=0, description="longest wait for a box while the quota is used up"
    )
    attempts: int = Field(default=_DEFAULTS.attempts, ge=1, description="attempts of a call that cannot act twice")

    @model_validator(mode="after")
    def _consistent(self) -> GBoxConfig:
        if self.max_age_s >= self.expires_in_s:
            raise ValueError(f"max_age_s={self.max_age_s:g} must be below expires_in_s={self.expires_in_s:g}")
        if self.box == "linux" and self.reset == "android":
            raise ValueError("box=linux with reset=android; allowed: reset=fresh, or reset=pocket on a local GBox")
        return self
