"""What a process plays at the moment."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from cua_agent.agent import Progress, StandaloneGBoxCUAAgent
from trainers.episodes.record import Mask, is_evaluation, masked_texts
from trainers.protocol import EpisodeSpec

_LOST = 20
_GROUPS = 200
"""Newest groups that are told of."""

Keep = Callable[[Image.Image, int, bool], str | None]
"""Keeps a screen seen under a version, in an evaluation or not; gives its file's name."""


@dataclass
class _Seat:
    """A device, as far as the pool lends that many: who plays there, and what was last told of it."""

    spec: EpisodeSpec | None = None
    agent: StandaloneGBoxCUAAgent | None = None
    version: int = 0
    began: float = 0.0
    image: Image.Image | None = None
    at: tuple[str, int, int] | None = None
    told: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Group:
    task: str
    version: int
    began: float
    done: int = 0
    playing: int = 0


class Board:
    """Running episodes, written down by the event loop and read by another thread: an episode pays for it once. Texts
    that are told go through `mask`."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._lock = threading.Lock()
        self._seats: list[_Seat] = []
        self._groups: dict[str, _Group] = {}
        self._lost: deque[dict[str, Any]] = deque(maxlen=_LOST)

    @contextmanager
    def playing(self, spec: EpisodeSpec, agent: StandaloneGBoxCUAAgent, version: int) -> Iterator[int]:
        """`agent` plays `spec` inside, begun under policy `version`; gives the device's number."""
        now = time.time()
        with self._lock:
            seat = next((seat for seat in self._seats if seat.agent is None), None)
            if seat is None:
                seat = _Seat()
                self._seats.append(seat)
            device = self._seats.index(seat)
            seat.spec, seat.agent, seat.version, seat.began = spec, agent, version, now
            group = None if is_evaluation(spec) else self._group(spec, version, now)
        done = 0
        try:
            yield device
            done = 1
        finally:
            with self._lock:
                seat.agent = None
                if group is not None:
                    group.playing -= 1
                    group.done += done

    def lost(self, spec: EpisodeSpec, why: str) -> None:
        """Infrastructure lost an episode: it will be replaced."""
        with self._lock:
            self._lost.append({"id": spec.episode_id, "task": spec.task.id, "why": why, "time": time.time()})
            if spec.group_id in self._groups:
                self._groups[spec.group_id].done -= 1

    def told(self, keep: Keep) -> dict[str, Any]:
        """The present state; screens that are new go through `keep`."""
        with self._lock:
            seats = [(seat, seat.spec, seat.agent) for seat in self._seats]
            groups = [{"group": name, **vars(group)} for name, group in self._groups.items()]
            lost = list(self._lost)
        devices = []
        for number, (seat, spec, agent) in enumerate(seats):
            progress = agent.progress if agent is not None else None
            if spec is not None and progress is not None:
                at = spec.episode_id, len(progress.turns), len(progress.phases)
                if at != seat.at:  # else nothing happened since the last look
                    seat.told, seat.at = self._device(seat, spec, progress, keep), at
            idle = {"waits_for": "idle"} if agent is None and seat.told else {}
            devices.append({"device": number, **seat.told, **idle})
        return {"devices": devices, "groups": groups, "lost": lost}

    def _group(self, spec: EpisodeSpec, version: int, now: float) -> _Group:
        group = self._groups.get(spec.group_id)
        if group is None:
            group = self._groups[spec.group_id] = _Group(spec.task.id, version, now)
            while len(self._groups) > _GROUPS:
                del self._groups[next(iter(self._groups))]
        group.playing += 1
        return group

    def _device(self, seat: _Seat, spec: EpisodeSpec, progress: Progress, keep: Keep) -> dict[str, Any]:
        seen, turns = progress.seen, list(progress.turns)
        screen = seat.told.get("screen") if seat.told.get("id") == spec.episode_id else None
        if seen is not None and not seen.private and seen.screenshot is not seat.image:
            screen = keep(seen.screenshot, seat.version, is_evaluation(spec))
            seat.image = seen.screenshot
        last = turns[-1] if turns else None
        waits_for, since = progress.phases[-1]
        texts = [progress.goal, (last.action or last.text) if last else ""]
        goal, said = masked_texts(texts, spec.task.secrets, self._mask)
        return {
            "id": spec.episode_id,
            "group": spec.group_id,
            "task": spec.task.id,
            "goal": goal,
            "turn": len(turns) + 1,
            "waits_for": waits_for,
            "since": since,
            "began": seat.began,
            "version": seat.version,
            "screen": None if seen is not None and seen.private else screen,
            "said": said,
        }
