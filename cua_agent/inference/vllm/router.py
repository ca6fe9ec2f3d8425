"""Which server takes a request, and which ones are left out because they gave no answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


@dataclass
class _Server:
    url: str
    down_since: float | None = None
    asked_again_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    is_tried: bool = False
    said: bool = False


class Router:
    """Round robin with affinity: a conversation stays on its server, whose prefix cache knows it.

    A server that failed is left out, and its conversations move on to others and stay there. After a pause, which
    doubles with every failure, it gets one request to try it with; when it answers it is back. When all have failed,
    the one that is due first is asked. One that is away for longer than a pause is logged, and its return. `patience_s`
    is only said.
    """

    def __init__(self, urls: Sequence[str], patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = [_Server(url) for url in urls]
        self._patience_s = patience_s
        self._clock = clock
        self._next = 0
        self._homes: dict[str, int] = {}

    def pick(self, conversation_id: str) -> int:
        """Index of the server for the conversation's next request."""
        home = self._homes.get(conversation_id)
        if home is None or self._servers[home].down_since is not None:
            home = self._homes[conversation_id] = self._choose()
        return home

    def present(self) -> list[int]:
        """Indices of the servers that are not left out; all of them when every one is."""
        up = [index for index, server in enumerate(self._servers) if server.down_since is None]
        return up or list(range(len(self._servers)))

    def failed(self, index: int, why: str) -> None:
        """The server gave no answer that can be used."""
        server, now = self._servers[index], self._clock()
        if server.down_since is None:
            server.down_since, server.pause_s = now, FIRST_PAUSE_S
        elif now < server.asked_again_at and not server.is_tried:
            return  # asked before it failed, or while all have
        else:
            server.pause_s = min(2 * server.pause_s, LONGEST_PAUSE_S)
            self._say(server, why)
        server.asked_again_at, server.is_tried = now + server.pause_s, False

    def answered(self, index: int) -> None:
        """The server gave a good answer."""
        server = self._servers[index]
        if server.said:
            logger.warning("%s answers again, after %.0f s", server.url, self._clock() - (server.down_since or 0.0))
        server.down_since, server.is_tried, server.said = None, False, False

    def _say(self, server: _Server, why: str) -> None:
        """Once, when it was no hiccup."""
        if server.said:
            return
        server.said = True
        why = why if server.url in why else f"{server.url}: {why}"
        if any(other.down_since is None for other in self._servers):
            logger.warning("%s; the other servers go on without it", why)
        else:
            logger.warning("waiting up to %g s: %s", self._patience_s, why)

    def release(self, conversation_id: str) -> None:
        self._homes.pop(conversation_id, None)

    def _choose(self) -> int:
        now = self._clock()
        due = next(
            (i for i, s in enumerate(self._servers) if s.down_since is not None and s.asked_again_at <= now), None
        )
        if due is not None:
            server = self._servers[due]
            server.is_tried, server.asked_again_at = True, now + LONGEST_PAUSE_S  # nobody else tries it meanwhile
            return due
        count = len(self._servers)
        order = [(self._next + i) % count for i in range(count)]
        up = next((i for i in order if self._servers[i].down_since is None), None)
        chosen = min(order, key=lambda i: self._servers[i].asked_again_at) if up is None else up
        self._next = (chosen + 1) % count
        return chosen
