"""A loop that is blocked: by what, and that nobody waits for it for ever."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest

from trainers.rollouts import event_loops
from trainers.rollouts.event_loops import LoopThread


async def block_the_loop(until: threading.Event) -> None:
    until.wait(60)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_what_blocks_a_loop_is_named_and_so_is_that_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    loop, go_on = LoopThread(blocked_s=0.2), threading.Event()
    waiting = threading.Thread(target=loop.run, args=(block_the_loop(go_on),))
    waiting.start()
    assert eventually(lambda: any("has been blocked in" in message for message in caplog.messages))
    assert eventually(lambda: "has been blocked in block_the_loop (test_event_loops.py:" in caplog.text)
    go_on.set()
    waiting.join()
    assert eventually(lambda: "the event loop goes on" in caplog.messages)
    loop.close()


def test_a_blocked_loop_is_left_alone_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loops, "ANSWER_S", 0.2)
    loop, never = LoopThread(), threading.Event()
    threading.Thread(target=loop.run, args=(block_the_loop(never),), daemon=True).start()
    assert eventually(lambda: not loop.answers())
    loop.close()  # comes back
    never.set()


def test_a_loop_that_is_closed_cancels_what_still_runs_on_it() -> None:
    ended = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(endless())
        await asyncio.sleep(0)
        return task

    loop = LoopThread()
    task = loop.run(begin())
    assert loop.answers()
    loop.close()
    assert (ended, task.cancelled()) == ([True], True)
