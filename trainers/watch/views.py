"""What the pages show, as plain data: one function a view, the same for the server and for an export."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainers.config import ConfigError
from trainers.config.saved import CONFIG, read_saved
from trainers.episodes.files import EPISODES, LIVE, read_json
from trainers.run.curves import read_curve
from trainers.run.files import last_error, read_rows
from trainers.run.lineage import lineage_of, training_rows
from trainers.run.metrics import json_safe
from trainers.watch.findings import answers, common
from trainers.watch.recording import Entry, Recording
from trainers.watch.strip import strip

SILENT_S = 15.0
"""A process that has told nothing for so long is not there any more."""
_STEPS = 12
"""Newest steps whose times are shown."""
_LOST = 20
_SHOWN_KEYS = (
    *("backend", "phase", "experiment", "max_steps", "env.name", "model.path", "inference.name"),
    *("rollout.group_size", "rollout.groups_per_step", "rollout.concurrency", "rollout.max_staleness"),
)


def answer(recordings: Sequence[Recording], name: str) -> Any | None:
    """The data called `name`, as the pages ask for it; None when there is none."""
    if name == "runs":
        return [{"name": recording.name, "parts": len(recording.parts)} for recording in recordings]
    if name == "curves":
        return [curves(recording) for recording in recordings]
    match = re.fullmatch(r"(\d+)/(\w+)(?:/(\d+))?(?:/([\w.-]+))?", name)
    if match is None or int(match[1]) >= len(recordings):
        return None
    recording, kind, number, group = recordings[int(match[1])], match[2], match[3], match[4]
    if number is None:
        return _WHOLE[kind](recording) if kind in _WHOLE else None
    if kind == "strip":
        return strip(recording.directory, int(number)) or {"step": int(number), "seconds": 0.0, "lanes": []}
    if kind == "tasks":
        return tasks(recording, int(number))
    if kind == "episode":
        return episode(recording, int(number))
    return group_episodes(recording, int(number), group) if kind == "group" and group else None


def now(recording: Recording) -> dict[str, Any]:
    """What the run does at the moment: devices, queue, the newest steps, lost episodes."""
    present = time.time()
    live = _live(recording)
    alive = _alive(live, present)
    part = len(recording.parts) - 1
    rows = [row for row in read_rows(recording.directory / "metrics.jsonl") if isinstance(row, dict)]
    version = max([int(_number(row.get("policy_version"))) for row in rows[-1:]], default=0)
    waiting = [
        group
        for state in alive
        for group in state.get("groups", [])
        if (part, group.get("group")) not in recording.groups
    ]
    lost = [(number, entry) for number, entry in recording.episodes() if entry.about["outcome"] == "infra_error"]
    return {
        "time": present,
        "live": bool(alive),
        "summary": read_json(recording.directory / "summary.json"),
        "error": last_error(recording.directory),
        "settings": settings(recording),
        "part": part,
        "version": version,
        "devices": [{"process": state["process"], **each} for state in alive for each in state.get("devices", [])],
        "screens_dropped": sum(int(_number(state.get("screens_dropped"))) for state in live),
        "queue": waiting,
        "steps": [{key: json_safe(value) for key, value in row.items()} for row in rows[-_STEPS:]],
        "lost": [{"n": number, **entry.about} for number, entry in lost[-_LOST:]][::-1],
        "lost_count": len(lost),
    }


def _live(recording: Recording) -> list[dict[str, Any]]:
    """What each process last told of itself."""
    return [read_json(path) for path in sorted((recording.directory / EPISODES).glob(f"{LIVE}*.json"))]


def _alive(live: Sequence[dict[str, Any]], present: float) -> list[dict[str, Any]]:
    return [state for state in live if state.get("open") and present - _number(state.get("time")) < SILENT_S]


def settings(recording: Recording) -> dict[str, Any]:
    """The keys that say what the run is."""
    try:
        return _saved(recording.directory, (recording.directory / CONFIG).stat().st_mtime_ns)
    except (OSError, ConfigError):
        return {}


@lru_cache(maxsize=64)
def _saved(directory: Path, changed: int) -> dict[str, Any]:
    """The keys in a configuration as it was written at `changed`; the wall asks for them every second."""
    del changed
    saved = read_saved(directory).settings
    return {key: saved[key] for key in _SHOWN_KEYS if key in saved}


def groups(recording: Recording, step: int | None = None) -> list[dict[str, Any]]:
    """All training groups, or those of a step, the newest first."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    over = not _alive(_live(recording), time.time())
    unused = {"state": "unused", "why": "the run ended before a step used it"} if over else {}
    for number, entry in recording.episodes():
        about = entry.about
        if about["evaluation"] or (step is not None and recording.step_of(entry) != step):
            continue
        key = entry.part, str(about["group"])
        group = found.setdefault(
            key,
            {
                **{name: about[name] for name in ("group", "task", "goal", "category", "version", "time")},
                "part": entry.part,
                **{name: recording.groups.get(key, unused).get(name) for name in ("step", "state", "why")},
                "members": [],
                "findings": [],
            },
        )
        group["members"].append({"n": number, "outcome": about["outcome"], "reward": about["reward"]})
        group["findings"].append(recording.findings_of(entry))
    for group in found.values():
        group["findings"] = common(group["findings"])
    return sorted(found.values(), key=lambda group: (group["step"] is None, group["step"] or 0, group["group"]))[::-1]


def tasks(recording: Recording, step: int) -> list[dict[str, Any]]:
    """The groups of a step, those that failed most first."""
    return sorted(groups(recording, step), key=_success)


def _success(group: dict[str, Any]) -> float:
    """Share of the episodes that count and succeeded; -1 when none counts."""
    outcomes = [member["outcome"] for member in group["members"] if member["outcome"] != "infra_error"]
    return outcomes.count("success") / len(outcomes) if outcomes else -1.0


def group_episodes(recording: Recording, part: int, group: str) -> list[dict[str, Any]]:
    """The episodes of a group, whole, in the order of their names."""
    members = [
        _whole(recording, number, entry)
        for number, entry in recording.episodes()
        if (entry.part, entry.about["group"]) == (part, group)
    ]
    return sorted(members, key=lambda member: str(member.get("id")))


def episodes(recording: Recording) -> list[dict[str, Any]]:
    """All episodes, in the order in which they ended."""
    return [_listed(recording, number, entry) for number, entry in recording.episodes()]


def episode(recording: Recording, number: int) -> dict[str, Any] | None:
    """One episode with everything that was recorded."""
    if number >= len(recording.entries):
        return None
    entry = recording.entries[number]
    return {
        **_whole(recording, number, entry),
        "system": recording.system(),
        "last": len(recording.entries) - 1,
        "success": None if entry.about["outcome"] == "success" else _nearest_success(recording, number),
    }


def _nearest_success(recording: Recording, number: int) -> int | None:
    """The number of a success of the same task as the episode's, the one that ended nearest to it."""
    task = recording.entries[number].about["task"]
    won = [
        other
        for other, entry in recording.episodes()
        if entry.about["task"] == task and entry.about["outcome"] == "success"
    ]
    return min(won, key=lambda other: abs(other - number), default=None)


def evaluations(recording: Recording) -> dict[str, Any]:
    """Every held-out episode by task and seed, and how each evaluation that played it went."""
    steps: set[int] = set()
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for number, entry in recording.episodes():
        about, step = entry.about, recording.step_of(entry)
        if not about["evaluation"] or step is None or about["outcome"] == "infra_error":
            continue
        steps.add(step)
        row = rows.setdefault(
            (about["task"], about["seed"]),
            {**{name: about[name] for name in ("task", "category", "goal", "seed")}, "played": {}},
        )
        row["played"][step] = {"n": number, "outcome": about["outcome"], "score": about["score"]}
    return {
        "steps": sorted(steps),
        "rows": sorted(rows.values(), key=lambda row: (row["category"], row["task"], row["seed"])),
    }


def curves(recording: Recording) -> dict[str, Any]:
    """The run's learning curve, and every row of its metrics."""
    lineage = lineage_of(recording.directory)
    rows = [{key: json_safe(value) for key, value in row.items()} for row in training_rows(lineage)]
    return {**asdict(read_curve(recording.directory, lineage)), "rows": rows, "notes": list(lineage.notes)}


_WHOLE: dict[str, Callable[[Recording], Any]] = {
    "now": now,
    "groups": groups,
    "episodes": episodes,
    "evaluations": evaluations,
}
"""The views of a whole run."""


def _listed(recording: Recording, number: int, entry: Entry) -> dict[str, Any]:
    group = recording.group_of(entry)
    return {
        "n": number,
        "part": entry.part,
        **entry.about,
        "findings": recording.findings_of(entry),
        "step": recording.step_of(entry),
        "state": group.get("state"),
        "why": group.get("why"),
        "advantage": (group.get("advantages") or {}).get(entry.about["id"]),
        "trained": group.get("version"),
    }


def _whole(recording: Recording, number: int, entry: Entry) -> dict[str, Any]:
    row = entry.place.read()
    listed = {key: value for key, value in _listed(recording, number, entry).items() if key != "turns"}
    return {**row, **listed, "answers": answers(row.get("verdict") or {})}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
