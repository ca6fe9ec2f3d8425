"""What a killed run left half done in its directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from cua_agent.scratch import is_abandoned
from trainers.run.checkpoint_files import settle_interrupted
from trainers.run.directory import display_path
from trainers.run.lineage import lineage_of

_TEMPORARY = (".trial-*", "*.part", "trajectories/.*", ".*.new")


def sweep_lineage(directory: Path) -> list[str]:
    """Clear what interrupted writes left in a run's directory and in those it went on from, except where a process is
    still at work; a line for each directory that had some."""
    said = []
    for part in lineage_of(directory).parts:
        count = _sweep(part.directory) if is_abandoned(part.directory) else 0
        if count:
            said.append(f"swept from {display_path(part.directory)}: {count} leftovers of interrupted writes")
    return said


def _sweep(directory: Path) -> int:
    found = [path for pattern in _TEMPORARY for path in directory.glob(pattern)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found) + settle_interrupted(directory / "checkpoints")
