"""The directory of a checkpoint: sealed by checksums, written atomically, found again, pruned."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainers.protocol import TrainerState

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
BASE = "base.json"
FORMAT = 1

_NEW, _FORMER = ".new", ".former"
_PERIODIC = re.compile(r"step_\d+")
_STATE = TypeAdapter(TrainerState)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line naming it and the reason."""


def write_checkpoint(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the checkpoint `path` of the files that `fill` writes into a directory, atomically: it is written beside
    its final place, flushed to disk and renamed. A checkpoint already there is replaced."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{_NEW}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        _seal(temporary)
        _move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_state(path: Path) -> TrainerState:
    """The checkpoint's `TrainerState`; fields that are younger than it have their defaults. Raises
    `CheckpointError`."""
    try:
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {STATE} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"checkpoint {path}: {STATE} holds no keys")
    if unknown := set(values) - {field.name for field in fields(TrainerState)}:
        raise CheckpointError(f"checkpoint {path}: {STATE} has unknown keys: {', '.join(sorted(unknown))}")
    try:
        state = _STATE.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, value = first["loc"][0], str(first["input"])[:40]
        raise CheckpointError(f"checkpoint {path}: {STATE}: {key}={value}: {first['msg']}") from None
    played = values.pop("task_success", {})
    counts = {f"task_success.{task}": min(pair) for task, pair in played.items()}
    for key, value in (values | counts).items():  # counts, seconds and shares
        if value is not None and value < 0:
            raise CheckpointError(f"checkpoint {path}: {STATE}: {key}={value}: it must be at least 0")
    return state


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest. Raises `CheckpointError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: no readable {MANIFEST} ({error})") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {version}, this program reads {FORMAT}")
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"checkpoint {path} is incomplete: {name} is missing")
        if _sha256(path / name) != digest:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} differs from its checksum")


def newest_intact(directory: Path, *, at_least: int = 0) -> tuple[Path | None, list[str]]:
    """The intact checkpoint of the highest step in `directory`, no lower than step `at_least`; and why newer ones
    were passed over, a line each."""
    passed_over = []
    for step, path in reversed(_by_step(directory)):
        if step < at_least:
            break
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        return path, passed_over
    return None, passed_over


def latest_checkpoint(directory: Path) -> Path | None:
    """The intact checkpoint of the highest step in `directory`; broken ones are passed over."""
    return newest_intact(directory)[0]


def newest_step(directory: Path) -> int:
    """The highest step of the checkpoints in `directory`, whole or not; -1 where there is none."""
    return max((step for step, _ in _by_step(directory)), default=-1)


def prune_checkpoints(directory: Path, *, keep: int) -> int:
    """Delete all periodic checkpoints (`step_...`) but the newest `keep`; `best` and `last` stay. Returns how many
    periodic ones are left."""
    periodic = [path for _, path in _by_step(directory) if _PERIODIC.fullmatch(path.name)]
    surplus = max(len(periodic) - keep, 0)
    for path in periodic[:surplus]:
        shutil.rmtree(path, ignore_errors=True)
    return len(periodic) - surplus


def settle_interrupted(directory: Path) -> int:
    """Finish or undo the interrupted writes in `directory`, and return how many there were: a sealed checkpoint goes to
    its place, a torn one is deleted. Nobody may be writing."""
    found = [path for path in directory.glob(".*") if path.is_dir() and path.suffix in (_NEW, _FORMER)]
    for path in sorted(found, key=lambda path: path.suffix == _FORMER):  # a new one replaces a former one
        target = path.with_name(path.stem[1:])
        try:
            verify_checkpoint(path)
            if path.suffix == _NEW or not target.exists():
                _move_into_place(path, target)
        except CheckpointError:
            pass
        shutil.rmtree(path, ignore_errors=True)
    return len(found)


def _by_step(directory: Path) -> list[tuple[int, Path]]:
    """Sealed checkpoints, oldest first. Found by content: one whose replacement was interrupted has a hidden name."""
    found = []
    for path in directory.glob("*/" + MANIFEST):
        try:
            found.append((read_state(path.parent).step, path.parent))
        except CheckpointError:
            continue
    return sorted(found, key=lambda item: (item[0], not item[1].name.startswith("."), item[1].name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(directory: Path) -> None:
    """Flush every file to disk, then write the manifest that makes the directory a checkpoint."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): _sha256(path) for path in paths}
    for name in files:
        _flush(directory / name)
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")
    _flush(directory / MANIFEST)
    _flush(directory)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename; a former `path` steps aside first, so that at every moment one complete checkpoint exists."""
    former = path.with_name(f".{path.name}{_FORMER}")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        path.rename(former)
    temporary.rename(path)
    _flush(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
