"""`env=gbox`: boxes of the GBox service, or of a local one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.envs.android.start import ANDROID_FAMILIES
from cua_agent.envs.gbox.settings import BoxType, GBoxSettings, Reset, check_requirements
from cua_agent.envs.pocket import tasks
from cua_agent.envs.pocket.state import Layout
from cua_agent.envs.pool import EnvironmentFactory
from cua_agent.options import STRICT, Name, without_user
from cua_agent.tasks import CUATask, EvalSplit

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(without_user)]
KeyReference = Annotated[str, Field(pattern=r"^\$\{oc\.env:\w+\}$")]

_DEFAULTS = GBoxSettings()


@dataclass(frozen=True, config=STRICT)
class GBoxWorld(GBoxSettings):
    """Boxes of the GBox service, or of a local one."""

    PRACTICAL = frozenset(vars(_DEFAULTS)) - {"base_url", "box", "reset", "scale", "screenshot_delay_s"}

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

    layout: Layout = Field(default="shuffled", description="reset=pocket: order of the home screen")
    pixel_scale: int = Field(
        default=1, ge=1, le=8, description="reset=pocket: screenshot pixels per logical pixel of the phone"
    )

    @model_validator(mode="after")
    def _consistent(self) -> GBoxWorld:
        if self.max_age_s >= self.expires_in_s:
            raise ValueError(f"max_age_s={self.max_age_s:g} must be below expires_in_s={self.expires_in_s:g}")
        if self.box == "linux" and self.reset == "android":
            raise ValueError("box=linux with reset=android; allowed: reset=fresh, or reset=pocket on a local GBox")
        return self

    def check(self) -> None:
        """Raise `WorldUnavailable` when the SDK or the key is missing."""
        check_requirements(self)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnvironmentFactory]:
        """A client of the service; an environment is a box, and every one is ended at the end."""
        self.check()
        from cua_agent.envs.gbox.box_lifecycle import open_gbox

        async with open_gbox(self, self.layout, self.pixel_scale) as new_box:
            yield new_box

    def training_tasks(self) -> list[CUATask]:
        """Those of `pocket`, which is a phone as well and whose validators only need a shell; with `reset=android` the
        families whose start a real phone can be put into."""
        return self._prepared(tasks.training_tasks())

    def eval_tasks(self, split: EvalSplit) -> list[CUATask]:
        """As `training_tasks`."""
        return self._prepared(tasks.eval_tasks(split))

    def _prepared(self, tasks: list[CUATask]) -> list[CUATask]:
        return [task for task in tasks if self.reset != "android" or task.category in ANDROID_FAMILIES]
