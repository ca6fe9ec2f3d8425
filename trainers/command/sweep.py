"""`-m`: a run for every combination of values."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from cua_agent.exit_status import DONE, FAILED, INTERRUPTED
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import compose_run
from trainers.config.sweeps import runs_of
from trainers.run.commands import TRAIN


def sweep(overrides: Sequence[str]) -> int:
    """A run for every combination of values, one after the other, each in a process of its own; all of them are checked
    before the first begins."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("-m under a launcher: a launcher runs one configuration; allowed: -m without torchrun")
    from trainers.config.overrides import parse_override

    named = [parse_override(each) for each in overrides if each.startswith("output_dir=")]
    runs = runs_of(overrides, str(named[-1][1]) if named else TrainConfig().output_dir)
    for run in runs:
        compose_run(run)
    failed = 0
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run[-1]}", flush=True)
        status = _run_apart([*TRAIN, *run])
        if status == INTERRUPTED:
            return INTERRUPTED
        failed += status != DONE
    print(f"{len(runs) - failed} of {len(runs)} runs are done: {runs[0][-2]}")
    return FAILED if failed else DONE


def _run_apart(command: Sequence[str]) -> int:
    """The exit status of a command in a session of its own: Ctrl-C reaches it through us, once, and it gets time to
    save."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return INTERRUPTED
