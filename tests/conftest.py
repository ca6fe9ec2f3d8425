"""Set-up that all tests share."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and the tests of interrupts are about SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
