"""A disk with no room left: recognising it, and saying it in one line."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAID = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing file")
"""What safetensors, tokenizers and torch make of these numbers in errors of their own."""
_MEGABYTE = 1e6


class NoSpace(OSError):  # noqa: N818 (what it is)
    """A checkpoint that the disk has no room for; the message is the line to show."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.errno = errno.ENOSPC


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it arose from, is that there was no room to write."""
    if error is None:
        return False
    number = error.errno if isinstance(error, OSError) else None
    here = number in _FULL or (isinstance(error, Exception) and any(said in str(error) for said in _SAID))
    return here or is_full(error.__cause__ or error.__context__)


def full_in_words(directory: Path, needed: int = 0) -> str:
    """That the disk of the run `directory` is full: what is free, what a checkpoint takes (`needed` bytes, or as much
    as those that are there), and that nothing is torn."""
    free = shutil.disk_usage(directory).free / _MEGABYTE
    sizes = [
        sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file())
        for checkpoint in (directory / "checkpoints").glob("*")
        if checkpoint.is_dir() and not checkpoint.name.startswith(".")
    ]
    takes = max([needed, *sizes])
    needs = f", a checkpoint takes {takes / _MEGABYTE:.1f} MB" if takes else ""
    whole = "; those in it are whole" if sizes else ""
    return f"no space left for {directory}: {free:.1f} MB free{needs}{whole}; make room, or set output_dir"
