"""What users name as `package.module:attribute`: their worlds, their rewards."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from typing import Any

from cua_agent.options import ConfigError, shown

REFERENCE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)")


def load(reference: str, key: str) -> Any:
    """What `package.module:attribute` names; modules are also found in the current directory, after all others.

    Raises `ConfigError`, one line that begins with `key=reference`, whatever the import raises.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(f"{key}={shown(reference)}: allowed: package.module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109 - entries of sys.path are texts
        sys.path.append(os.getcwd())  # noqa: PTH109 - absolute, for processes that are started with this path
    try:
        found: Any = importlib.import_module(match["module"])
    except Exception as error:
        raise ConfigError(f"{key}={shown(reference, 80)}: {_cannot_import(match['module'], error)}") from error
    for name in match["attribute"].split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{key}={shown(reference, 80)}: {match['module']} has no {match['attribute']}")
        found = getattr(found, name)
    return found


def _cannot_import(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name} in the current directory, on PYTHONPATH or among installed packages"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({frame.filename}, line {frame.lineno})"
    return f"importing it fails with {type(error).__name__}: {shown(str(error), 160)}{where}"
