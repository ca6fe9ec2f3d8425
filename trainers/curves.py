"""``python -m trainers.curves outputs/RUN [outputs/RUN ...] --output docs/curve.png``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cua_agent.secrets import masked_output
from trainers.config import ConfigError
from trainers.run.curves import CURVE, draw, read_curve
from trainers.run.lineage import is_run_directory, lineage_of

DONE, BAD_CONFIGURATION = 0, 2


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one picture of several runs; returns the exit status. A run and its resumptions are one curve."""
    parser = argparse.ArgumentParser(description="Draw the learning curves of run directories.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", type=Path, default=Path(CURVE), help="PNG file to write")
    given = parser.parse_args(arguments)
    try:
        print(_draw(given.runs, given.output))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    return DONE


def _draw(runs: Sequence[Path], output: Path) -> Path:
    for run in runs:
        if not is_run_directory(run):
            raise ConfigError(f"{run}: no run directory of train.py")
    lineages = {run: lineage_of(run) for run in dict.fromkeys(runs)}
    earlier = {part.directory.resolve() for lineage in lineages.values() for part in lineage.parts[:-1]}
    curves = []
    for run, lineage in lineages.items():
        for note in lineage.notes:
            print(note, file=sys.stderr)
        if run.resolve() not in earlier:  # the beginning of another curve
            curves.append(read_curve(run, lineage))
    try:
        return draw(curves, output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
