"""Keep one run going until it is done: python -m trainers.supervise [--failures N] run_name=NAME [key=value ...]

It runs `train.py` with these keys, and again with resume=auto whenever that fails or is killed. A start that leaves no
newer checkpoint than the one before it is a failure; after N of them in a row (5) it gives up. Signals are passed on.

Exit status: 0 the run is done; 2 its configuration is refused; 130 it was interrupted, by a signal here or there;
1 it was given up.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED, INTERRUPTED
from cua_agent.secrets import masked_output
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import load_config
from trainers.config.validation import AUTO
from trainers.run.commands import TRAIN
from trainers.run.resuming import saved_step, settle_auto

FAILURES = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LONGEST_WAIT_S = 60.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return DONE
    try:
        failures, overrides = _options(arguments)
        config = load_config([*overrides, *([] if _typed(overrides, "resume") else [f"resume={AUTO}"])])
        if config.run_name is None:
            raise ConfigError("run_name: must be set; it is how a start finds what the one before it left")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    return Supervisor(lambda: _command(config, overrides), lambda: saved_step(config), failures).run()


def _options(arguments: list[str]) -> tuple[int, list[str]]:
    if "--failures" not in arguments:
        return FAILURES, arguments
    place = arguments.index("--failures")
    given = arguments[place + 1 : place + 2]
    if not given or not given[0].isdigit() or int(given[0]) < 1:
        raise ConfigError(f"--failures {' '.join(given)}: allowed: a number above 0")
    return int(given[0]), arguments[:place] + arguments[place + 2 :]


def _typed(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0] == key for override in overrides)


def _command(config: TrainConfig, overrides: Sequence[str]) -> list[str]:
    """How to start the run: as typed, unless there is something of it to go on with."""
    found = settle_auto(config, overrides).overrides
    goes_on = _typed(found, "resume") or not _typed(overrides, "resume")
    others = [override for override in overrides if override.partition("=")[0] != "resume"]
    return [*TRAIN, *([*others, f"resume={AUTO}"] if goes_on else overrides)]


class Supervisor:
    """Runs `command()` until it is done. `progress` grows when a run has saved something new; so many `failures` in a
    row without that end it."""

    def __init__(self, command: Callable[[], Sequence[str]], progress: Callable[[], int], failures: int) -> None:
        self._command = command
        self._progress = progress
        self._failures = failures
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def run(self) -> int:
        """The exit status. Call it in the main thread."""
        former = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in former.items():
            if handler is not signal.SIG_IGN or number != signal.SIGHUP:  # nohup
                signal.signal(number, self._pass_on)
        try:
            return self._run()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        failed, saved = 0, self._progress()
        while not self._stopped.is_set():
            status = self._start()
            if status in (DONE, BAD_CONFIGURATION, INTERRUPTED) or self._stopped.is_set():
                return status if status >= 0 else INTERRUPTED
            before, saved = saved, self._progress()
            failed = 0 if saved > before else failed + 1
            if failed == self._failures:
                _say(f"{_ended(status)}; given up after {failed} starts that saved nothing new")
                return FAILED
            wait_s = min(2.0**failed, _LONGEST_WAIT_S)
            _say(f"{_ended(status)}; started again in {wait_s:.0f} s, newest checkpoint: step {saved}")
            self._stopped.wait(wait_s)
        return INTERRUPTED

    def _start(self) -> int:
        """Run it once, out of reach of the terminal: Ctrl-C comes through here, once. It does not outlive this
        process."""
        self._process = subprocess.Popen(self._command(), start_new_session=True, preexec_fn=_end_with_parent)
        try:
            if self._stopped.is_set():  # before there was a process to pass it on to
                self._process.terminate()
            return self._process.wait()
        finally:
            self._process = None

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._stopped.set()
        if self._process is not None:
            self._process.send_signal(number)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ended(status: int) -> str:
    return f"the run ended with status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


def _say(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
