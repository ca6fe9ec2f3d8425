"""`python compare.py [key=value ...]`: read what was typed, train what is missing, write the report."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import masked_output
from trainers.command.ending import check_options, print_trace_on_demand
from trainers.config import ConfigError
from trainers.config.presets import joined_options
from trainers.run.commands import TRAIN, typed


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"--help", "-h"} & set(arguments):
        from trainers.compare.options import help_text

        print(help_text(shlex.join(typed("compare"))), file=sys.stdout if arguments else sys.stderr)
        return DONE if arguments else BAD_CONFIGURATION
    try:
        arguments = joined_options(arguments)
        check_options(arguments)
        _interrupt_on_signals()
        return _compare(arguments)
    except ConfigError as error:
        print_trace_on_demand(error)
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _compare(arguments: Sequence[str]) -> int:
    from trainers.compare.options import read_arguments
    from trainers.compare.session import prepare

    options, overrides = read_arguments(arguments)
    session = prepare(options, overrides, TRAIN)
    failures = session.train_missing()
    words = session.write(failures)
    if words:
        print(words)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if not words:
        print("error: no run finished, nothing to compare", file=sys.stderr)
    return FAILED if failures else DONE


def _interrupt_on_signals() -> None:
    """SIGTERM, and a terminal that closes, are treated as Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with SIGINT ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
