"""Where the training command is, for whatever starts runs."""

from __future__ import annotations

import sys
from pathlib import Path

TRAIN = (sys.executable, "-u", str(Path(__file__).resolve().parents[2] / "train.py"))
"""The beginning of a command that trains; keys follow."""
