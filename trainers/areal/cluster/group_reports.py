"""What a rollout worker tells the controller of a group, besides its tensors, which stay with the worker."""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass, replace
from typing import Any

from cua_agent.envs.pool import PoolStats
from trainers.areal.rollout.distributed_rollouts import row_without_pixels
from trainers.areal.rollout.group_results import FinishedGroup
from trainers.distributed.torch_process_group import portable
from trainers.protocol import Group


@dataclass(frozen=True)
class Report:
    """A group that was played, by which worker, and what this worker's environments did so far."""

    finished: FinishedGroup
    worker: str
    stats: PoolStats


def pack(value: Any) -> str:
    """Any value as text; for processes of one run only, because reading it runs code."""
    return base64.b64encode(pickle.dumps(value)).decode("ascii")


def unpack(text: str) -> Any:
    """The value of `pack`'s text. For text of this run's own processes only: reading it runs code."""
    return pickle.loads(base64.b64decode(text))


def light_finished(finished: FinishedGroup) -> FinishedGroup:
    """`finished` without pixels, and its error as what can be sent."""
    group = finished.group
    error = finished.error and portable(finished.error)
    light = Group(group.spec, [[row_without_pixels(row) for row in rows] for rows in group.episodes])
    return replace(finished, group=light, error=error)
