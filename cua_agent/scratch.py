"""Temporary directories that the next process of this library sweeps when theirs was killed."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO

LOCK = ".lock"
_PREFIX = "cua-grpo-"


@contextmanager
def scratch_directory(purpose: str) -> Iterator[Path]:
    """A new directory in the system's temporary one, deleted at the end; whatever killed processes left is deleted at
    once."""
    sweep_scratch()
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
    with held(path):
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def sweep_scratch() -> None:
    """Delete the scratch directories of dead processes."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


@cache
def process_scratch() -> Path:
    """A scratch directory that ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_directory("process"))


@contextmanager
def temporary_files_in(directory: Path) -> Iterator[None]:
    """What makes temporary files inside, and processes that are started there, keep them in `directory`."""
    before, default = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = default
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Inside, `directory` is known to be in use, to processes of this machine at least; the kernel lets go of it
    however the process ends."""
    with _locked(directory):
        yield


def is_abandoned(directory: Path) -> bool:
    """Whether the process that held `directory` is dead, or has let go of it; False where nobody ever held it."""
    try:
        with (directory / LOCK).open("r+") as lock:
            return _try(lock)
    except OSError:  # not ours to read, or gone
        return False


def _locked(directory: Path) -> IO[str]:
    """The lock file, which appears when it is locked already."""
    new = directory / f"{LOCK}.new"
    lock = new.open("w")
    try:
        _try(lock)
        new.replace(directory / LOCK)
    except BaseException:
        lock.close()
        raise
    return lock


def _try(lock: IO[str]) -> bool:
    """Whether the lock could be had; a file system without locks has none to give."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
