"""The process that trains: its environment, its signals and its words."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from contextlib import suppress
from typing import NoReturn

from trainers.config import TrainConfig
from trainers.config.thread_settings import thread_settings
from trainers.config.validation import BUILT_IN_MODELS

_PROCESS_0_ENDS_S = 60.0


def quiet_libraries(config: TrainConfig) -> None:
    """Settings of the environment that libraries read when they are imported; those that are there win."""
    settings = {
        "TORCHDYNAMO_DISABLE": str(int(not config.loader.compile)),  # importing the compiler costs seconds
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **thread_settings(config.threads),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def prepare_process(config: TrainConfig) -> None:
    """Quiet libraries, bounded threads, and signals that end the run as Ctrl-C does; before torch is imported."""
    quiet_libraries(config)
    if config.model.path in BUILT_IN_MODELS:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with SIGINT ignored
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which is what nohup does
        signal.signal(signal.SIGHUP, _hang_up)


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def _hang_up(*_: object) -> None:
    """The terminal is gone, and whoever writes to it gets an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
    _interrupt()


def say(message: str) -> None:
    """On standard error; of several processes that a launcher started, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def let_process_0_end_first() -> None:
    """A launcher ends all processes with the first that fails: it should be the one that speaks and saves."""
    if os.environ.get("RANK", "0") != "0":
        with suppress(KeyboardInterrupt):
            time.sleep(_PROCESS_0_ENDS_S)


def leave(status: int) -> NoReturn:
    """End the process; Ctrl-C has nothing to interrupt any more, and ends it at once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(status))
    sys.exit(status)
