"""Going through the checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.error_text import type_and_line
from cua_agent.inference.base import InferenceFailure
from cua_agent.inference.vllm.errors import CanaryError, ServerMismatch
from cua_agent.models.errors import ModelError
from cua_agent.secrets import BadKey
from trainers.config import ConfigError
from trainers.doctor.context import Context
from trainers.doctor.finding import Check, Finding, Status, error, not_checked, refused
from trainers.run.checkpoint_files import CheckpointError

REFUSALS = (
    *(BadKey, CanaryError, CheckpointError, ConfigError, EnvironmentFailure),
    *(InferenceFailure, ModelError, ServerMismatch, WorldUnavailable),
)
"""Errors whose message is one line for a person."""


@dataclass(frozen=True)
class Result:
    """A check and what it found."""

    check: Check
    finding: Finding


def examine(checks: Sequence[Check], context: Context, on_done: Callable[[Result], None]) -> list[Result]:
    """Run all `checks` in their order, telling `on_done` of each as it ends. What a check raises is its finding, and
    what needs a failed one is not run."""
    results: list[Result] = []
    failed: set[str] = set()
    for check in checks:
        missing = next((name for name in check.needs if name in failed), None)
        finding = _run(check, context) if missing is None else not_checked(f"waits for: {missing}")
        if missing is not None or finding.status is Status.ERROR:
            failed.add(check.name)
        results.append(Result(check, finding))
        on_done(results[-1])
    return results


def _run(check: Check, context: Context) -> Finding:
    try:
        return check.run(context)
    except REFUSALS as refusal:
        return refused(refusal, check.helps)
    except Exception as problem:
        return error(type_and_line(problem), check.helps)
