"""``python -m trainers.timeline outputs/RUN``: writes its trace.json, and tells how long devices waited."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cua_agent.error_text import type_and_line
from cua_agent.exit_status import BAD_CONFIGURATION, DONE, FAILED
from trainers.config import ConfigError
from trainers.config.saved import read_saved
from trainers.timeline.log import TIMELINE, read_timeline
from trainers.timeline.trace import write_trace
from trainers.timeline.waits import device_waits


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.timeline",
        description="Writes trace.json of a run, for https://ui.perfetto.dev, and tells how long its devices waited.",
    )
    parser.add_argument("run", type=Path, help="run directory")
    run: Path = parser.parse_args(arguments).run
    try:
        if not (run / TIMELINE).is_dir():
            raise ConfigError(f"{run}: no run with a timeline (logging.timeline_mb)")
        devices = int(read_saved(run).settings["rollout.concurrency"])
        for line in _waits(run, devices):
            print(line)
        print(write_trace(run))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except OSError as error:
        print(f"error: {type_and_line(error)}", file=sys.stderr)
        return FAILED
    return DONE


def _waits(run: Path, devices: int) -> list[str]:
    found = device_waits(read_timeline(run), devices)
    lines = [f"{'step':>6}  {'playing s':>10}  {'waiting s':>10}  {'in use':>7}   of {devices} devices"]
    lines += [
        f"{each.step:>6}  {each.playing_s:>10.1f}  {each.waiting_s:>10.1f}  {100 * each.utilisation:>5.1f} %"
        for each in found
    ]
    total = sum(each.waiting_s for each in found)
    return [*lines, f"devices waited {total:.1f} s in all"]


if __name__ == "__main__":
    sys.exit(main())
