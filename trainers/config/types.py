"""Types of single keys."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return pattern


def without_user(url: str) -> str:
    """`url`, which must not hold a user or password: it is seen in process lists and in files."""
    if "@" in urlsplit(url).netloc:
        raise ValueError("no user or password in an address; keys are read from environment variables")
    return url


Name = Annotated[str, Field(strict=False, pattern=r"^\w[\w.+=-]*$")]
PathText = Annotated[str, Field(strict=False, min_length=1)]
Regex = Annotated[str, AfterValidator(_compiles)]
ServerUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/v1)?/?$"), AfterValidator(without_user)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
