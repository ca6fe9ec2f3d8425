"""Set-up that all tests share."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.legacy_rig import MakeRig

# A shell starts background jobs with SIGINT ignored, `nohup` ignores SIGHUP; the tests of interrupts are about both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes is a matter of the machine's load, and what CI tries must not be a matter of luck.
hypothesis.settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("unhurried")

_LOGGERS = logging.Logger.manager


def pytest_collectreport() -> None:
    """A module that imports AReaL leaves a logging tree of AReaL's own behind, which `caplog` does not hear."""
    logging.Logger.root, logging.Logger.manager = _LOGGERS.root, _LOGGERS


def pytest_collection_finish() -> None:
    """What the modules imported stays: garbage is not looked for among it, as AReaL's engines do whenever they end."""
    gc.freeze()


def pytest_runtest_setup() -> None:
    """So does a test."""
    logging.Logger.root, logging.Logger.manager = _LOGGERS.root, _LOGGERS


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few thousand parameters, on disk."""
    from tests.tiny_random import build

    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def make_rig(weights: Path, tmp_path: Path) -> Iterator[MakeRig]:
    """Makes synchronous trainers of that model; see `tests.legacy_rig`."""
    from tests.legacy_rig import rig_maker

    with rig_maker(weights, tmp_path) as make:
        yield make
