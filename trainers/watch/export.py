"""The pages as one folder of static files, which a browser opens from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.watch.recording import Recording
from trainers.watch.server import SCREEN, STATIC
from trainers.watch.views import answer, now


def export(recordings: Sequence[Recording], target: Path) -> Path:
    """Write everything that the pages show into the new folder `target`; returns the page to open. Raises `OSError`."""
    for recording in recordings:
        recording.refresh()
    target.mkdir(parents=True)
    shutil.copytree(STATIC, target / "static")
    page = (STATIC / "index.html").read_text(encoding="utf-8").replace("data-served", "data-exported")
    (target / "index.html").write_text(page.replace('"/static/', '"static/'), encoding="utf-8")
    for name in _names(recordings):
        content = answer(recordings, name)
        file = target / "data" / f"{name}.js"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"received({json.dumps(name)}, {json.dumps(content)});\n", encoding="utf-8")
        if isinstance(content, dict) and "/episode/" in name:
            _copy_screens(recordings, int(name.split("/")[0]), content, target)
    return target / "index.html"


def _names(recordings: Sequence[Recording]) -> Iterator[str]:
    yield from ("runs", "curves")
    for run, recording in enumerate(recordings):
        yield from (f"{run}/{view}" for view in ("now", "groups", "episodes", "evaluations"))
        yield from (f"{run}/strip/{row['step']}" for row in now(recording)["steps"])
        yield from (f"{run}/tasks/{step}" for step in sorted({group["step"] for group in recording.groups.values()}))
        listed = list(recording.episodes())
        yield from (f"{run}/episode/{number}" for number, _ in listed)
        groups = {(entry.part, str(entry.about["group"])) for _, entry in listed if not entry.about["evaluation"]}
        yield from (f"{run}/group/{part}/{group}" for part, group in sorted(groups))


def _copy_screens(recordings: Sequence[Recording], run: int, episode: dict[str, Any], target: Path) -> None:
    names = [*(turn.get("screen") for turn in episode.get("turns") or []), episode.get("final")]
    for name in names:
        if not isinstance(name, str) or not SCREEN.fullmatch(name):
            continue
        source = recordings[run].screen(episode["part"], name)
        copy = target / "screens" / str(run) / str(episode["part"]) / name
        if source.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
