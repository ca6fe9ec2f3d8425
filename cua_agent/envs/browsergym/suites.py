"""The packages of BrowserGym's tasks, by the ids of these."""

from __future__ import annotations

import importlib
import re
from typing import Any

from cua_agent.error_text import type_and_line

ID = r"^([A-Za-z_][\w.]*:)?browsergym/\w+[\w.-]*$"
_OWN = "openended"
"""The one task that comes with the core."""


class NoSuite(ValueError):  # noqa: N818 (a state of the machine)
    """The package of a task is not there, or has no such task; the message is one line."""


def import_suite(task_id: str) -> Any:
    """Import what registers `browsergym/<suite>.<task>`, or the module of `module:browsergym/...`, and return
    gymnasium's entry of it. Raises `NoSuite`."""
    import gymnasium

    module, _, name = task_id.rpartition(":")
    suite = re.split(r"\W", name.removeprefix("browsergym/"))[0]
    module = module or ("browsergym.core" if suite == _OWN else f"browsergym.{suite}")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NoSuite(
            f"{task_id} needs the package {module.replace('.', '-')} (there is no module {error.name}), and servers of "
            "its own: see its README"
        ) from error
    except Exception as error:  # a suite that looks for its servers or its data
        raise NoSuite(f"{task_id}: importing {module} fails with {type_and_line(error)}") from error
    if name not in gymnasium.registry:
        known = [each.removeprefix("browsergym/") for each in gymnasium.registry if each.startswith("browsergym/")]
        near = [each for each in known if each.startswith(suite)]
        raise NoSuite(f"{task_id}: {module} has no such task, {len(near)} others")
    return gymnasium.registry[name]
