"""``python -m trainers.curves outputs/RUN [outputs/RUN ...] --output docs/curve.png``"""

from __future__ import annotations

import argparse
from pathlib import Path

from trainers.run.curves import CURVE, draw, read_curve


def main() -> None:
    """Draw one picture of several runs."""
    parser = argparse.ArgumentParser(description="Draw the learning curves of run directories.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", type=Path, default=Path(CURVE), help="PNG file to write")
    arguments = parser.parse_args()
    print(draw([read_curve(run) for run in arguments.runs], arguments.output))


if __name__ == "__main__":
    main()
