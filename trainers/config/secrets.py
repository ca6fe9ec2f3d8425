"""Secrets are shown as `***`, whatever shows a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SECRET_NAME = re.compile(
    r"(^|_)(api_?keys?|keys?|tokens?|secrets?|passwords?|passwd|credentials?|auth)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"\b(sk|pk|hf|ghp|gho|github_pat|glpat|xox[abp]|wandb_v1|gbox)[-_][A-Za-z0-9_-]{12,}"  # tokens with known prefixes
    r"|\b(AKIA|AIza)[A-Za-z0-9_-]{12,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in a URL
    r"|(?<=[Bb]earer )\S+"
)
_SHORTEST_SECRET = 8


def mask_secrets(value: Any, environment: Mapping[str, str]) -> Any:
    """A copy of a plain tree in which everything that looks like a secret reads `***`.

    Secret are texts below a key named like one (`api_key`, `password`, ...), texts shaped like a known kind of token,
    and the values of environment variables named like a secret, wherever they appear.
    """
    known = sorted(
        (text for name, text in environment.items() if _SECRET_NAME.search(name) and len(text) >= _SHORTEST_SECRET),
        key=len,
        reverse=True,
    )
    return _mask(value, known, secret=False)


def _mask(value: Any, known: list[str], secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _mask(item, known, secret or bool(_SECRET_NAME.search(str(key)))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item, known, secret) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if secret:
        return MASK
    for text in known:
        value = value.replace(text, MASK)
    return _SECRET_VALUE.sub(MASK, value)
