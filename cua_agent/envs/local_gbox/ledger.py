"""What really happened, box by box: the proof that none is left running and that nothing was done twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cua_agent.envs.local_gbox.faults import FaultKind

Ending = Literal["terminated", "expired", "died", "create timed out"]
COMMAND = "command"
"""Name of a shell command among the actions."""
CLIENT_GONE: Literal["client_gone"] = "client_gone"
"""The client had hung up before the answer was sent."""


@dataclass
class BoxEntry:
    """One box's life; `created_at` and `ended_at` in seconds since the epoch, `ended` None while it runs."""

    id: str
    type: str
    labels: dict[str, str]
    created_at: float
    ended_at: float | None = None
    ended: Ending | None = None


@dataclass
class ActionEntry:
    """One action that was executed. `lost` says what kept its proper answer from the client (None: it was answered),
    `looked` whether the client saw the screen since, by a screenshot of its own."""

    sequence: int
    box: str
    action: str
    digest: str
    retry: int  # what the client's X-Stainless-Retry-Count said
    lost: str | None = None
    looked: bool = False


@dataclass(frozen=True)
class FaultEntry:
    """One fault that was served."""

    kind: FaultKind
    operation: str
    box: str
    after: bool


@dataclass
class Ledger:
    """Everything that was created, ended, executed and broken, in order."""

    boxes: dict[str, BoxEntry] = field(default_factory=dict)
    actions: list[ActionEntry] = field(default_factory=list)
    faults: list[FaultEntry] = field(default_factory=list)
    _last: dict[str, ActionEntry] = field(default_factory=dict)  # of each box

    def opened(self, box: str, kind: str, labels: dict[str, str], now: float) -> None:
        """A box was created."""
        self.boxes[box] = BoxEntry(box, kind, labels, now)

    def ended(self, box: str, ending: Ending, now: float) -> None:
        """The first ending counts: a box that died is not also terminated."""
        entry = self.boxes[box]
        if entry.ended is None:
            entry.ended, entry.ended_at = ending, now

    def executed(self, box: str, action: str, body: Mapping[str, Any], retry: int) -> ActionEntry:
        """An action took effect; `retry` counts the client's earlier tries. Returns its entry."""
        entry = ActionEntry(len(self.actions), box, action, digest(action, body), retry)
        self.actions.append(entry)
        self._last[box] = entry
        return entry

    def running(self) -> list[str]:
        """Boxes that have not ended."""
        return [box.id for box in self.boxes.values() if box.ended is None]

    def looked(self, box: str) -> None:
        """A client has seen the screen: whatever it does next, it does not do blindly."""
        last = self._last.get(box)
        if last:
            last.looked = True

    def sent_twice(self) -> list[ActionEntry]:
        """Actions that blindly repeat the one before them on the same box: that one had taken effect, only its answer
        was lost, and nobody looked in between. Shell commands are not counted: they are questions, or resets."""
        repeats: list[ActionEntry] = []
        former: dict[str, ActionEntry] = {}
        for entry in self.actions:
            last = former.get(entry.box)
            blind = last is not None and last.digest == entry.digest and last.lost is not None and not last.looked
            if blind and entry.action != COMMAND:
                repeats.append(entry)
            former[entry.box] = entry
        return repeats

    def report(self) -> dict[str, Any]:
        """The whole ledger as JSON, with a summary."""
        return {
            "summary": {
                "created": len(self.boxes),
                "running": self.running(),
                "ended": dict(Counter(box.ended for box in self.boxes.values() if box.ended)),
                "executed": sum(entry.action != COMMAND for entry in self.actions),
                "sent_twice": [entry.sequence for entry in self.sent_twice()],
                "faults": dict(Counter(fault.kind.value for fault in self.faults)),
            },
            "boxes": [asdict(box) for box in self.boxes.values()],
            "actions": [asdict(entry) for entry in self.actions],
            "faults": [asdict(fault) for fault in self.faults],
        }


def digest(action: str, body: Mapping[str, Any]) -> str:
    """The same for two requests that ask for the same thing."""
    return hashlib.sha256(json.dumps([action, body], sort_keys=True).encode()).hexdigest()[:16]
