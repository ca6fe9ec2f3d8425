"""The validator of worlds that keep score themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cua_agent.tasks import Probe

SCORE = "score"
"""What the probe of such an environment is asked for."""


@dataclass(frozen=True)
class OwnScore:
    """The score is the environment's own, which its `compute_reward` returns: there is no state to read beside it."""

    async def snapshot(self, probe: Probe) -> Mapping[str, str]:  # noqa: ARG002 (the score is absolute)
        return {}

    async def score(self, probe: Probe, before: Mapping[str, str]) -> float:  # noqa: ARG002
        return float(await probe(SCORE))
