"""Where processor time goes: the time of named functions, wherever they are called from, in whatever thread."""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

Parts = Mapping[str, Sequence[tuple[Any, str]]]
"""Of each part, the functions that it is made of: what holds them, and their name there; no coroutines."""


@dataclass
class Spent:
    """Processor seconds by part, and calls by function."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def forget(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.calls.clear()


@contextmanager
def timed(parts: Parts) -> Iterator[Spent]:
    """What was spent in `parts` inside, each without what it spent in others."""
    spent = Spent()
    lock, here = threading.Lock(), threading.local()

    def wrapped(function: Callable[..., Any], name: str, part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            outer, here.inner = getattr(here, "inner", 0.0), 0.0
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.thread_time() - started
                with lock:
                    spent.seconds[part] += seconds - here.inner
                    spent.calls[name] += 1
                here.inner = outer + seconds

        return call

    with ExitStack() as stack:
        for part, functions in parts.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, wrapped(getattr(owner, name), name, part)))
        yield spent
