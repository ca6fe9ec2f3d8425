"""What AReaL may not change in a process that uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import logging, sys
from trainers.areal.process import quiet
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
logging.getLogger("before")
quiet()
import areal.utils.logging
first = areal.utils.logging.getLogger("one of AReaL's")
areal.utils.logging.getLogger("another of AReaL's", "colored", logging.INFO)
first.info("chatter")
areal.utils.logging.getLogger("plain").info("chatter")
for name in ("before", "after"):
    logging.getLogger(name).warning("heard")
"""


@pytest.mark.slow
def test_handlers_hear_loggers_made_before_and_after_areal_and_no_chatter_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["before: heard", "after: heard"]
