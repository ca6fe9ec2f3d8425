"""The boxes: their lives from creation to the end, and the ledger that is kept of them."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.images import Gallery
from cua_agent.envs.local_gbox.ledger import Ending, Ledger
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.phone import Phone
from cua_agent.envs.local_gbox.replies import BoxType, Status
from cua_agent.envs.pocket.latency import Latency

ALIVE: tuple[Status, ...] = ("pending", "running")


@dataclass
class Box:
    """One box. Times are seconds since the epoch. `gone`: the service does not know it any more (404)."""

    id: str
    ordinal: int
    type: BoxType
    device_type: Literal["virtual", "physical"] | None
    labels: dict[str, str]
    envs: dict[str, str]
    created_at: float
    updated_at: float
    ready_at: float
    give_up_at: float
    expires_at: float
    phone: Phone
    latency: Latency
    status: Status = "pending"
    reason: str | None = None
    gone: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the device works: it does one thing at a time."""
    requests: Counter[str] = field(default_factory=Counter)
    last_answer: bytes | None = None  # the last that a client got to an action; a fault may repeat it


class Fleet:
    """All boxes of one server. Not thread-safe: it lives on the server's event loop."""

    def __init__(self, options: LocalGBoxOptions, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.clock = clock
        self.ledger = Ledger()
        self.gallery = Gallery()
        self.requests: Counter[str] = Counter()  # of requests that concern no box, by operation
        self._boxes: dict[str, Box] = {}
        self._ids = random.Random(f"{options.seed}/ids")
        self._create_latency = replace(options.create_latency, seed=options.seed)

    def create_seconds(self) -> float:
        """How long the next box takes to start."""
        return self._create_latency.sample()

    def open(
        self,
        kind: BoxType,
        *,
        device_type: Literal["virtual", "physical"] | None,
        labels: Mapping[str, str],
        envs: Mapping[str, str],
        expires_in_s: float,
        start_s: float,
        timeout_s: float,
    ) -> Box:
        """A pending box that runs after `start_s`, or is deleted after `timeout_s`. Raises `ApiError` (429)."""
        alive = sum(box.status in ALIVE for box in self.boxes())
        if self.options.quota is not None and alive >= self.options.quota:
            wait = {"Retry-After": str(self.options.retry_after_s)}
            raise ApiError(429, f"quota: {alive} of {self.options.quota} boxes are in use", wait)
        now, ordinal = self.clock(), len(self._boxes)
        seed = random.Random(f"{self.options.seed}/{ordinal}").getrandbits(31)
        box = Box(
            id=str(uuid.UUID(int=self._ids.getrandbits(128), version=4)),
            ordinal=ordinal,
            type=kind,
            device_type=device_type,
            labels=dict(labels),
            envs=dict(envs),
            created_at=now,
            updated_at=now,
            ready_at=now + start_s,
            give_up_at=now + timeout_s,
            expires_at=now + expires_in_s,
            phone=Phone(seed, self.options.layout, self.options.scale),
            latency=replace(self.options.action_latency, seed=seed),
        )
        self._boxes[box.id] = box
        self.ledger.opened(box.id, kind, box.labels, now)
        self._bring_up_to_date(box)
        return box

    def boxes(self) -> Iterator[Box]:
        """Every box that the service still knows, oldest first."""
        for box in list(self._boxes.values()):
            self._bring_up_to_date(box)
            if not box.gone:
                yield box

    def get(self, box_id: str) -> Box:
        """Raises `ApiError` (404)."""
        box = self._boxes.get(box_id)
        if box is not None:
            self._bring_up_to_date(box)
        if box is None or box.gone:
            raise ApiError(404, f"box {box_id[:80]} was not found")
        return box

    def running(self, box_id: str) -> Box:
        """Raises `ApiError`: 404 when it is unknown, 409 when it does not run."""
        box = self.get(box_id)
        if box.status != "running":
            raise ApiError(409, f"box {box.id} is {box.status}" + (f": {box.reason}" if box.reason else ""))
        return box

    def find(self, box_id: str) -> Box | None:
        """A box whatever its state, also one that is gone."""
        return self._boxes.get(box_id)

    def started(self, box: Box) -> None:
        """A box's starting time was waited for: it runs, unless it has ended meanwhile."""
        if box.status == "pending":
            box.status, box.updated_at = "running", self.clock()

    def terminate(self, box: Box) -> None:
        """End a box; ending it again changes nothing."""
        if box.status != "terminated":
            self._end(box, "terminated", "terminated", self.clock())

    def give_up(self, box: Box) -> None:
        """Delete a box that did not start in time."""
        self._end(box, "create timed out", "terminated", self.clock(), gone=True)

    def kill(self, box: Box, status: int) -> bool:
        """Break a box: from now on it answers `status`, 404 (the service forgot it) or 409 (in error). Returns whether
        it was alive."""
        self._bring_up_to_date(box)
        alive = box.status in ALIVE
        if alive:
            self._end(box, "died", "error", self.clock(), gone=status == 404)
        return alive

    def report(self) -> dict[str, object]:
        """The ledger, with boxes whose time is up counted as ended."""
        for box in self._boxes.values():
            self._bring_up_to_date(box)
        return self.ledger.report()

    def _bring_up_to_date(self, box: Box) -> None:
        """What happens to a box by the mere passing of time."""
        now = self.clock()
        if box.status not in ALIVE:
            return
        if now >= box.expires_at:
            self._end(box, "expired", "terminated", box.expires_at)
        elif box.status == "pending" and now >= box.ready_at and box.ready_at <= box.give_up_at:
            box.status, box.updated_at = "running", box.ready_at
        elif box.status == "pending" and now >= box.give_up_at:
            self.give_up(box)

    def _end(self, box: Box, ending: Ending, status: Status, when: float, *, gone: bool = False) -> None:
        box.status, box.reason, box.updated_at, box.gone = status, ending, when, gone
        box.last_answer = None
        self.ledger.ended(box.id, ending, when)
