"""The process of one environment: `python -m cua_agent.envs.browsergym.worker`, which its `Player` answers for.

Calls arrive on standard input and answers leave on standard output, pickled: (method, arguments), then (whether it
returned, the result or the error in one line). The end of the input is the end of the process.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from queue import SimpleQueue
from typing import IO, Any

from cua_agent.error_text import type_and_line
from cua_agent.scratch import scratch_directory, temporary_files_in

LEAVING_S = 5.0
"""How long closing the browser may take; then the process ends without."""

_Calls = SimpleQueue[tuple[str, tuple[Any, ...]] | None]


def main() -> None:
    """Answer calls until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what packages print is no answer
    calls: _Calls = SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, calls), daemon=True).start()
    with scratch_directory("browsergym") as scratch, temporary_files_in(scratch):
        _serve(calls, answers)


def _read(requests: IO[bytes], calls: _Calls) -> None:
    try:
        while True:
            calls.put(pickle.load(requests))
    except EOFError:
        calls.put(None)
        time.sleep(LEAVING_S)  # a page that hangs keeps the main thread
        os._exit(1)


def _serve(calls: _Calls, answers: IO[bytes]) -> None:
    player: Any = None
    while (call := calls.get()) is not None:
        name, arguments = call
        try:
            if player is None:
                from cua_agent.envs.browsergym.player import Player, use_installed_miniwob

                use_installed_miniwob()
                player, result = Player(*arguments), None
            else:
                result = getattr(player, name)(*arguments)
            answer = pickle.dumps((True, result))
        except Exception as error:  # tasks of others may raise anything
            answer = pickle.dumps((False, type_and_line(error)))
        answers.write(answer)
        answers.flush()
    if player is not None:
        player.close()


if __name__ == "__main__":
    main()
