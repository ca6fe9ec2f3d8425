"""Set-up that all tests share."""

from __future__ import annotations

import logging
import signal

# A shell starts background jobs with SIGINT ignored, and the tests of interrupts are about SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

_LOGGERS = logging.Logger.manager


def pytest_collectreport() -> None:
    """A module that imports AReaL leaves a logging tree of AReaL's own behind, which `caplog` does not hear."""
    logging.Logger.root, logging.Logger.manager = _LOGGERS.root, _LOGGERS


def pytest_runtest_setup() -> None:
    """So does a test."""
    logging.Logger.root, logging.Logger.manager = _LOGGERS.root, _LOGGERS
