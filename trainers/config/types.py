"""Types of single keys."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from cua_agent.options import Name, PathText, without_user

__all__ = ["Momentum", "Name", "PathText", "Regex", "ServerUrl", "Temperature"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]
ServerUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/v1)?/?$"), AfterValidator(without_user)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0)]
