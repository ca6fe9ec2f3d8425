"""Why an episode scored as it did: what its validator asked the environment, and what it heard."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cua_agent.tasks import CUATask, Probe


@dataclass
class Verdict:
    """The `validator` as it describes itself, its `rule` (its class's docstring and source of `score`, where they can
    be had), what it noted at the `start`, and at the end each question it `asked` with the answer."""

    validator: str = ""
    start: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    rule: str = ""


def heard(task: CUATask) -> tuple[CUATask, Verdict]:
    """`task` with a validator that scores just the same, and the verdict that it fills meanwhile."""
    kind = type(task.validation)
    verdict = Verdict(_described(task.validation), rule=_rule(kind))
    return replace(task, validation=_Heard(task.validation, verdict)), verdict


def _described(validator: Any) -> str:
    """Its own words; its class and attributes where it has none."""
    if not repr(validator).startswith(f"<{type(validator).__module__}."):  # what `object` says of itself
        return repr(validator)
    attributes = ", ".join(f"{name}={value!r}" for name, value in getattr(validator, "__dict__", {}).items())
    return f"{type(validator).__qualname__}({attributes})"


@functools.cache
def _rule(kind: type) -> str:
    words = inspect.cleandoc(kind.__doc__ or "")
    if words.startswith(f"{kind.__name__}("):  # what a dataclass without words is given
        words = ""
    try:
        source = textwrap.dedent(inspect.getsource(kind.score))  # type: ignore[attr-defined]
    except (OSError, TypeError, AttributeError):
        source = ""
    return "\n\n".join(filter(None, (words, source.rstrip())))


class _Heard:
    """Implements `Validator` over another. To the world it is that one: some worlds look at a validator's class."""

    def __init__(self, validator: Any, verdict: Verdict) -> None:
        self._validator = validator
        self._verdict = verdict

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        kind: type = self._validator.__class__
        return kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._validator, name)

    def snapshot(self, probe: Probe) -> Any:
        def note(start: Mapping[str, str]) -> None:
            self._verdict.start = start

        return _then(self._validator.snapshot(probe), note)

    def score(self, probe: Probe, before: Mapping[str, str]) -> Any:
        def ask(question: str) -> Any:
            return _then(probe(question), lambda answer: self._verdict.asked.append((question, answer)))

        return self._validator.score(ask, before)


def _then(value: Any, see: Callable[[Any], None]) -> Any:
    """`value`, which `see` is shown when it is there: a world may call its validators without awaiting them."""
    if not inspect.isawaitable(value):
        see(value)
        return value

    async def waited() -> Any:
        result = await value
        see(result)
        return result

    return waited()
