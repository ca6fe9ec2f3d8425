"""How a command ends that has keys of its own: unknown options, errors in one line, and the exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from cua_agent.error_text import type_and_line
from cua_agent.exit_status import BAD_CONFIGURATION, FAILED, INTERRUPTED
from trainers.config import ConfigError
from trainers.config.presets import OPTION, split_options


def check_options(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` for an option that there is not. `arguments` are as `joined_options` gives them."""
    for option in split_options(arguments)[1]:
        if option.startswith("-"):
            raise ConfigError(f"{option}: unknown option; allowed: --help, {OPTION} <directory>, key=value")


def print_trace_on_demand(error: Exception) -> None:
    """The traceback, where HYDRA_FULL_ERROR=1 asks for it."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)


def exit_status_of(command: Callable[[], int], interrupted: str) -> int:
    """The exit status of `command`; what ended it early is told in one line, Ctrl-C as `interrupted`."""
    try:
        return command()
    except ConfigError as error:
        print_trace_on_demand(error)
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print_trace_on_demand(error)
        print(f"error: {type_and_line(error)}", file=sys.stderr)
        return FAILED
