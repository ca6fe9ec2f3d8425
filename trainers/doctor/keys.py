"""Keys and logins: that they are there and can be sent. None is ever shown."""

from __future__ import annotations

import os

from cua_agent.secrets import KEY_VARIABLES
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, ok
from trainers.run.requirements import check_access


def keys(context: Context) -> Finding:
    """Everything from outside that the run asks for before it loads anything."""
    check_access(context.config)
    present = [name for name in KEY_VARIABLES if os.environ.get(name, "").strip()]
    return ok(f"set: {', '.join(present) or 'none, and none is needed'}")
