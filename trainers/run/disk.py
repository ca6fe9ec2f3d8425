"""A disk with no room left: recognising it, and saying it in one line."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAID = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing file")
"""What safetensors, tokenizers and torch make of these numbers in errors of their own."""
_MEGABYTE = 1e6


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it arose from, is that there was no room to write."""
    if error is None:
        return False
    number = error.errno if isinstance(error, OSError) else None
    here = number in _FULL or (isinstance(error, Exception) and any(said in str(error) for said in _SAID))
    return here or is_full(error.__cause__ or error.__context__)


def full_in_words(directory: Path) -> str:
    """That the disk of the run `directory` is full: what is free, what a checkpoint takes, and that nothing is torn."""
    free = shutil.disk_usage(directory).free / _MEGABYTE
    sizes = [
        sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file())
        for checkpoint in (directory / "checkpoints").glob("*")
        if checkpoint.is_dir() and not checkpoint.name.startswith(".")
    ]
    needs = f", a checkpoint takes {max(sizes) / _MEGABYTE:.1f} MB; those in it are whole" if sizes else ""
    return f"no space left for {directory}: {free:.1f} MB free{needs}; make room, or set output_dir"
