"""Whether this is a checkout, with its Makefile and its lists of packages, or an installed package."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Of a checkout: its top."""
CHECKOUT = all((ROOT / name).is_file() for name in ("pyproject.toml", "Makefile", "train.py", "compare.py"))


def hint(*, checkout: str, installed: str) -> str:
    """What helps where this is used: `checkout` may name what only a checkout has, `installed` may not."""
    return checkout if CHECKOUT else installed
