"""What the controller and its rollout workers tell each other of episodes, as text that is only data: JSON, and rows in
the format of recorded batches. A group's tensors stay with the worker, and so do pixels."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cua_agent.envs.pool import PoolStats
from cua_agent.error_text import first_line
from cua_agent.tasks import CUATask
from trainers.areal.rollout.distributed_rollouts import row_without_pixels
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.protocol import Batch, Episode, EpisodeSpec, Group, GroupSpec, Played
from trainers.rollouts.trajectory_store import decode_batch, encode_batch


@dataclass(frozen=True)
class Report:
    """A group that was played, by which worker, and what this worker's environments did so far."""

    finished: FinishedGroup
    worker: str
    stats: PoolStats


def pack_report(report: Report) -> str:
    """`report` as text; an error becomes the last line of what was lost."""
    finished = report.finished
    error = finished.error
    why = [] if error is None else [f"{finished.group.spec.group_id}: {type(error).__name__}: {first_line(error)}"]
    return json.dumps(
        {
            "index": finished.index,
            "lost": [*finished.lost, *why],
            "worker": report.worker,
            "stats": asdict(report.stats),
            "episodes": _pack_episodes(finished.group.episodes),
            "branches": _pack_episodes(finished.group.branches),
            "replayed": _pack_episodes(finished.group.replayed),
        }
    )


def unpack_report(text: str, spec_of: Callable[[int], GroupSpec]) -> Report:
    """What `pack_report` made text of; `spec_of` a place in the training sequence what was drawn for it."""
    said = json.loads(text)
    played = (_unpack_episodes(said[part]) for part in ("episodes", "branches", "replayed"))
    group = Group(spec_of(said["index"]), *played)
    return Report(FinishedGroup(said["index"], group, said["lost"]), said["worker"], PoolStats(**said["stats"]))


def pack_specs(specs: Iterable[EpisodeSpec]) -> str:
    """Episodes to play as text; tasks by their ids."""
    return json.dumps([[spec.task.id, spec.seed, spec.group_id, spec.episode_id] for spec in specs])


def unpack_specs(text: str, tasks: Mapping[str, CUATask]) -> list[EpisodeSpec]:
    """What `pack_specs` made text of. Raises `ValueError` for a task that is none of `tasks`."""
    rows = json.loads(text)
    if unknown := sorted({row[0] for row in rows} - tasks.keys()):
        raise ValueError(f"task {unknown[0]!r} is none of the configuration's tasks: workers do not know it")
    return [EpisodeSpec(tasks[name], *rest) for name, *rest in rows]


def pack_played(played: Sequence[Played]) -> str:
    """What became of episodes, as text."""
    episodes = _pack_episodes([each.rows or [] for each in played])
    return json.dumps({"episodes": episodes, "ends": [[each.rows is not None, each.lost] for each in played]})


def unpack_played(text: str) -> list[Played]:
    """What `pack_played` made text of."""
    said = json.loads(text)
    ends = zip(said["ends"], _unpack_episodes(said["episodes"]), strict=True)
    return [Played(rows if scored else None, tuple(lost)) for (scored, lost), rows in ends]


def _pack_episodes(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Rows without pixels, and how many each episode has."""
    rows = [row_without_pixels(row) for episode in episodes for row in episode]
    data = base64.b64encode(encode_batch(Batch(rows, [0.0] * len(rows))))
    return {"lengths": [len(episode) for episode in episodes], "rows": data.decode("ascii")}


def _unpack_episodes(packed: Mapping[str, Any]) -> list[Episode]:
    rows = iter(decode_batch(base64.b64decode(packed["rows"])).trajectories)
    return [[next(rows) for _ in range(length)] for length in packed["lengths"]]
