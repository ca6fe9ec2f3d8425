"""What a GBox environment can be told, and what it needs before it can start. Does not need the SDK."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr

from cua_agent.envs.base import WorldUnavailable
from cua_agent.secrets import BadKey, checked_key, referenced_variable

BoxType = Literal["android", "linux"]
Reset = Literal["pocket", "android", "fresh"]

KEY_VARIABLE = "GBOX_API_KEY"
ADDRESS_VARIABLE = "GBOX_CLIENT_BASE_URL"
MADE_BY = {"made-by": "cua-grpo"}
"""The label of every box that this library makes."""
RUN, PURPOSE, SESSION, CREATION = "run", "purpose", "session", "creation"
"""Labels that tell boxes apart: of a run, of what it is for, of one process, of one request to create."""


@dataclass(frozen=True)
class GBoxSettings:
    """Where boxes come from, how they are kept, and how patient a call is. Times are in seconds.

    `api_key` is `${oc.env:NAME}`, a key itself, or None: `${oc.env:GBOX_API_KEY}`. `base_url` None means the SDK's
    default, `run` None a name made up for this process. `reset` says how an episode starts: see
    `cua_agent.envs.gbox.start`. `scale` shrinks screenshots. `quota_wait_s` is how long a creation waits while the
    service has no box to give, `attempts` how often a call is made that cannot act twice. `prewarm`, `max_episodes` and
    `max_age_s` are those of `PoolPolicy`.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    box: BoxType = "android"
    reset: Reset = "android"
    run: str | None = None
    purpose: str = "training"
    expires_in_s: float = 3600.0
    max_age_s: float = 2700.0
    max_episodes: int | None = 50
    prewarm: int = 0
    scale: float = 1.0
    screenshot_delay_s: float = 0.5
    call_timeout_s: float = 30.0
    command_timeout_s: float = 30.0
    create_timeout_s: float = 120.0
    quota_wait_s: float = 300.0
    attempts: int = 5


def check_requirements(settings: GBoxSettings) -> None:
    """Raise `WorldUnavailable` when the SDK or the key is missing."""
    if importlib.util.find_spec("gbox_sdk") is None:
        raise WorldUnavailable("env=gbox needs the package gbox-sdk: pip install 'cua-grpo[gbox]'")
    api_key(settings)


def api_key(settings: GBoxSettings) -> SecretStr:
    """The key to show. Raises `WorldUnavailable`."""
    given = settings.api_key or f"${{oc.env:{KEY_VARIABLE}}}"
    variable = referenced_variable(given)
    key = given if variable is None else os.environ.get(variable, "")
    if not key.strip():
        raise WorldUnavailable(
            f"env=gbox needs a key: set the environment variable {variable or KEY_VARIABLE}, or "
            "env.args.api_key='${oc.env:NAME}'"
        )
    try:
        return checked_key(key, variable or "env.args.api_key")
    except BadKey as error:
        raise WorldUnavailable(str(error)) from None


def address(settings: GBoxSettings) -> str:
    """Where the service is; empty for the SDK's own default."""
    return settings.base_url or os.environ.get(ADDRESS_VARIABLE, "")
