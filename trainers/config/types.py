"""Types of single keys."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return pattern


Name = Annotated[str, Field(strict=False, pattern=r"^\w[\w.+=-]*$")]
PathText = Annotated[str, Field(strict=False, min_length=1)]
Regex = Annotated[str, AfterValidator(_compiles)]
ServerUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/v1)?/?$")]
Momentum = Annotated[float, Field(ge=0, lt=1)]
