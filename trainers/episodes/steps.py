"""What became of groups and evaluations: written by the process that keeps the run's books."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainers.episodes.best_effort import BestEffort
from trainers.episodes.files import BEST, EPISODES, STEPS, append_rows, replace_json
from trainers.protocol import Batch, Collected, Group


class StepLog:
    """Rows about the groups of each step, and about each evaluation. Where it cannot be written, that is told once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / EPISODES
        self._writing = BestEffort(self._directory, "groups")

    def step(self, step: int, version: int, collected: Collected, batch: Batch) -> None:
        """Step `step` trained policy `version` on the `kept` groups of `collected`."""
        self._append(group_rows(step, version, collected, batch))

    def evaluation(self, step: int, version: int, split: str) -> None:
        """Policy `version` was evaluated after `step`."""
        self._append([{"evaluation": split, "step": step, "version": version}])

    def best(self, step: int, version: int) -> None:
        """That evaluation is the best so far."""
        self._writing(lambda: replace_json(self._directory / BEST, {"step": step, "version": version}))

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        self._writing(lambda: append_rows(self._directory / STEPS, rows))


def group_rows(step: int, version: int, collected: Collected, batch: Batch) -> Iterator[dict[str, Any]]:
    """A row for each group that a step used or left: `kept`, `filtered` or `dropped`, why, and the advantage of each
    episode."""
    advantages = {
        row.episode_id: advantage for row, advantage in zip(batch.trajectories, batch.advantages, strict=True)
    }
    for state, groups in (("kept", collected.kept), ("filtered", collected.filtered)):
        for group in groups:
            yield {
                "group": group.spec.group_id,
                "task": group.spec.task.id,
                "step": step,
                "version": version,
                "state": state,
                "why": "" if state == "kept" else without_signal(group),
                "advantages": {
                    rows[0].episode_id: advantages.get(rows[0].episode_id)
                    for rows in (*group.episodes, *group.branches)
                    if rows
                },
            }
    for name in collected.dropped:
        why = "came too late for rollout.max_staleness"
        yield {"group": name, "step": step, "version": version, "state": "dropped", "why": why, "advantages": {}}


def without_signal(group: Group) -> str:
    """Why nothing can be learnt from a group."""
    played = [rows for rows in (*group.episodes, *group.branches) if rows]
    if len(played) < 2:
        return f"no signal: {'every episode' if not played else 'all but one episode'} was lost"
    rewards = sorted({rows[0].reward for rows in played})
    if len(rewards) == 1:
        return f"no signal: all {len(played)} rewards are {rewards[0]:g}"
    return f"no signal: {len(played)} episodes, rewards {', '.join(f'{reward:g}' for reward in rewards)}"
