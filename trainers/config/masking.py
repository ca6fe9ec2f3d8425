"""Secrets are shown as `***`, whatever shows a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cua_agent.secrets import MASK, is_secret_name, mask_text, referenced_variable

__all__ = ["MASK", "mask_secrets"]


def mask_secrets(value: Any, environment: Mapping[str, str]) -> Any:
    """A copy of a plain tree in which everything that looks like a secret reads `***`.

    Secret are texts below a key named like one (`api_key`, `password`, ...), but for the name of a variable as in
    `${oc.env:NAME}`, and whatever `mask_text` takes for one.
    """
    return _mask(value, environment, secret=False)


def _mask(value: Any, environment: Mapping[str, str], secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _mask(item, environment, secret or is_secret_name(str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item, environment, secret) for item in value]
    if not isinstance(value, str) or not value or referenced_variable(value) is not None:
        return value
    return MASK if secret else mask_text(value, environment)
