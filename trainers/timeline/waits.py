"""How long devices waited, from the timeline alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.timeline.log import RUN
from trainers.timeline.spans import Rows


@dataclass(frozen=True)
class DeviceWaits:
    """Of one step, summed over `devices` in the seconds that its environment figures are about: how long they played
    an episode, and how long they waited for one."""

    step: int
    playing_s: float
    waiting_s: float

    @property
    def utilisation(self) -> float:
        """Share of the time that devices played: `env_utilisation` of metrics.jsonl."""
        all_s = self.playing_s + self.waiting_s
        return self.playing_s / all_s if all_s else 0.0


def device_waits(rows: Rows, devices: int) -> list[DeviceWaits]:
    """Of every step whose devices' episodes are all in the timeline. A step is about the `capacity_s / devices` seconds
    before its batch was complete."""
    episodes = sorted((row["ended"], row["began"]) for own in rows.values() for row in own if "episode" in row)
    if not episodes:
        return []
    first = min(began for _, began in episodes)
    ends = [ended for ended, _ in episodes]
    found = []
    for row in rows.get(RUN, ()):
        if "collected" not in row:
            continue
        ended = row["collected"]
        began = ended - row["capacity_s"] / devices
        if began + row["rollout_s"] < first:  # older episodes have made room
            continue
        playing_s = _overlap(episodes[bisect_left(ends, began) :], began, ended)
        found.append(DeviceWaits(row["step"], playing_s, row["capacity_s"] - playing_s))
    return found


def _overlap(episodes: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    return sum(max(0.0, min(end, ended) - max(start, began)) for end, start in episodes)
