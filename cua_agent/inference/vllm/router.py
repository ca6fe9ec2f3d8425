"""Which server takes a request."""

from __future__ import annotations

import time
from collections.abc import Callable

COOLDOWN_S = 2.0


class Router:
    """Round robin with affinity: a conversation stays on its server, whose prefix cache knows it.

    A server that failed is passed over for `cooldown_s`; its conversations move on to others and stay there. When all
    have failed, the one whose turn comes first is tried.
    """

    def __init__(
        self, servers: int, cooldown_s: float = COOLDOWN_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._down_until = [0.0] * servers
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._next = 0
        self._homes: dict[str, int] = {}

    def pick(self, conversation_id: str) -> int:
        """Index of the server for the conversation's next request."""
        home = self._homes.get(conversation_id)
        if home is None or not self._is_up(home):
            home = self._homes[conversation_id] = self._next_up()
        return home

    def failed(self, server: int) -> None:
        """The server did not answer: pass it over for a while."""
        self._down_until[server] = self._clock() + self._cooldown_s

    def release(self, conversation_id: str) -> None:
        self._homes.pop(conversation_id, None)

    def _is_up(self, server: int) -> bool:
        return self._down_until[server] <= self._clock()

    def _next_up(self) -> int:
        count = len(self._down_until)
        order = [(self._next + i) % count for i in range(count)]
        server = next((i for i in order if self._is_up(i)), min(order, key=self._down_until.__getitem__))
        self._next = (server + 1) % count
        return server
