"""Which request fails, and how: pure decisions from a seed and a request's number."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable


class Operation(StrEnum):
    """What a request does, as far as faults care. `QUERY`: get, list, display and settings."""

    CREATE = "create"
    ACTION = "action"
    SCREENSHOT = "screenshot"
    COMMAND = "command"
    TERMINATE = "terminate"
    QUERY = "query"
    MODEL = "model"


class FaultKind(StrEnum):
    """`TIMEOUT`: no answer for longer than a client waits. `DROP`: the connection ends without an answer. `DEATH`: the
    box breaks. `DUPLICATE`: the last answer that a client got to an action on the box, once more, as when a proxy
    repeats a reply."""

    SERVER_ERROR = "server_error"
    RATE_LIMIT = "rate_limit"
    TIMEOUT = "timeout"
    DROP = "drop"
    DEATH = "death"
    SLOW_CREATE = "slow_create"
    TRUNCATED_IMAGE = "truncated_image"
    DUPLICATE = "duplicate"


Moment = Literal["before", "after", "either"]

APPLIES_TO: Mapping[FaultKind, frozenset[Operation]] = {
    FaultKind.SERVER_ERROR: frozenset(Operation),
    FaultKind.RATE_LIMIT: frozenset(Operation),
    FaultKind.TIMEOUT: frozenset(Operation),
    FaultKind.DROP: frozenset(Operation),
    FaultKind.DEATH: frozenset({Operation.ACTION, Operation.SCREENSHOT, Operation.COMMAND}),
    FaultKind.SLOW_CREATE: frozenset({Operation.CREATE}),
    FaultKind.TRUNCATED_IMAGE: frozenset({Operation.ACTION, Operation.SCREENSHOT}),
    FaultKind.DUPLICATE: frozenset({Operation.ACTION}),
}
HITS_AT_EITHER_MOMENT = frozenset({FaultKind.SERVER_ERROR, FaultKind.TIMEOUT, FaultKind.DROP})
ALWAYS_AFTER = frozenset({FaultKind.TRUNCATED_IMAGE, FaultKind.DUPLICATE})
_STATUSES = {FaultKind.SERVER_ERROR: (500, 502, 503, 504), FaultKind.DEATH: (404, 409)}


@dataclass(frozen=True)
class Fault:
    """What happens to one request. `after`: the request took effect, only its answer is lost or wrong. `status` is that
    of a server error, or what a dead box answers from then on."""

    kind: FaultKind
    after: bool = False
    status: int = 500


@runtime_checkable
class FaultSource(Protocol):
    """Decides which requests fail."""

    def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:
        """The fault of a stream's `number`-th request (from 1) of this operation; a stream is a box, or "" for
        requests that concern none."""
        ...


@dataclass(frozen=True)
class FaultPlan:
    """A request fails with probability `rate`, in one of those `kinds` that can happen to it, equally likely.

    Requests are numbered per box, so that what befalls one box does not depend on how requests of several interleave.
    `moment` says when faults hit that could do so before or after the effect.
    """

    rate: float = 0.0
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    moment: Moment = "either"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate} must be from 0 to 1")

    def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:
        rng = random.Random(f"{self.seed}/{stream}/{operation}/{number}")
        possible = [kind for kind in self.kinds if operation in APPLIES_TO[kind]]
        if not possible or rng.random() >= self.rate:
            return None
        kind = rng.choice(possible)
        after = self.moment == "after" or (self.moment == "either" and rng.random() < 0.5)
        status = rng.choice(_STATUSES.get(kind, (0,)))
        return Fault(kind, kind in ALWAYS_AFTER or (after and kind in HITS_AT_EITHER_MOMENT), status)


@dataclass(frozen=True)
class ScriptedFaults:
    """Faults at given places: the `number`-th request of an operation, on every box."""

    script: Mapping[tuple[Operation, int], Fault] = field(default_factory=dict)

    def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:  # noqa: ARG002
        return self.script.get((operation, number))
