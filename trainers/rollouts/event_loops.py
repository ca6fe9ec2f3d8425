"""Event loops in threads of their own: whatever blocks one is named, and does not keep the run from being ended."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

BLOCKED_S = 30.0
"""How long a loop may be blocked before it is said by what."""
ANSWER_S = 15.0
"""How long a loop may take to answer when its run ends."""
_BEAT_S = 1.0
_SHOWN_FRAMES = 3
_INNER = (str(Path(asyncio.__file__).parent), threading.__file__, __file__)

T = TypeVar("T")


class LoopWatch:
    """Watches a loop from a thread of its own, on the thread of which it is made; ends with the loop.

    Once it has been blocked for `after_s` seconds a line says where, and another one when it goes on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float = BLOCKED_S) -> None:
        self._loop = loop
        self._after_s = after_s
        self._thread = threading.get_ident()
        self._last = time.monotonic()
        self._beat()
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def _beat(self) -> None:
        self._last = time.monotonic()
        self._loop.call_later(min(_BEAT_S, self._after_s / 4), self._beat)

    def _watch(self) -> None:
        said = False
        while not self._loop.is_closed():
            time.sleep(min(_BEAT_S, self._after_s / 4))
            blocked_s = time.monotonic() - self._last
            if not self._loop.is_running():
                self._last = time.monotonic()
            elif blocked_s >= self._after_s and not said:
                said = True
                logger.warning(
                    "nothing is played, because for %.0f s the event loop has been blocked in %s; methods of an "
                    "environment that block must be plain functions, which get a thread",
                    *(blocked_s, where(self._thread)),
                )
            elif blocked_s < self._after_s and said:
                said = False
                logger.warning("the event loop goes on")


def where(thread: int) -> str:
    """What a thread is doing: its innermost calls outside of asyncio, the innermost first."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    stack = [each for each in traceback.extract_stack(frame) if not each.filename.startswith(_INNER)]
    calls = [f"{each.name} ({Path(each.filename).name}:{each.lineno})" for each in reversed(stack)]
    return " < ".join(calls[:_SHOWN_FRAMES]) or "asyncio"


def answers(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a running loop can still do anything; asked from another thread."""
    answered = threading.Event()
    loop.call_soon_threadsafe(answered.set)
    return answered.wait(ANSWER_S)


class LoopThread:
    """A loop of its own in a thread of its own, which ends with the process at the latest."""

    def __init__(self, blocked_s: float = BLOCKED_S) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(LoopWatch, self._loop, blocked_s)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` there and wait for it here; Ctrl-C ends the wait, and cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def answers(self) -> bool:
        """Whether the loop can still do anything."""
        return answers(self._loop)

    def close(self) -> None:
        """End the loop; one that is blocked is left alone."""
        if not self.answers():
            return
        self.run(_end_of_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_of_all() -> None:
    """As `asyncio.run` ends: what still runs is cancelled, generators are closed."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
