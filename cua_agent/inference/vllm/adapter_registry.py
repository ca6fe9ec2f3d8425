"""Which weights were published under which name, which requests they serve, and which nobody needs any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cua_agent.inference.vllm.whole_weights import WholeWeights


@dataclass(frozen=True)
class Publication:
    """One export of the policy's weights.

    `name` is the adapter's name on the servers; `serial` counts publications.
    `expected` is the trainer's own answer to the canary under these weights. `whole` are the weights themselves, when
    no adapter is served.
    """

    version: int
    serial: int
    name: str
    directory: Path
    expected: tuple[float, ...] = field(default=(), repr=False)
    whole: WholeWeights | None = field(default=None, repr=False)

    @property
    def tag(self) -> str:
        """What full weights are tagged with on a server: it leads other runs to this one's lock."""
        return str(self.directory)


class AdapterRegistry:
    """All publications that a request may still need; the newest announced one serves new requests. Thread-safe.

    `owner` begins every name: no other engine may have the same.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._lock = threading.Lock()
        self._serial = 0
        self._known: dict[str, Publication] = {}
        self._in_flight: dict[str, int] = {}
        self._current: Publication | None = None
        self._used_names: set[str] = set()

    @property
    def current(self) -> Publication | None:
        """What new requests are served with; None before the first announcement."""
        return self._current

    def next_name(self, version: int) -> str:
        """`<owner>-v<version>`, with a counter when the version was published before: a name never gets new weights."""
        name, again = f"{self._owner}-v{version}", 1
        while name in self._used_names:
            name, again = f"{self._owner}-v{version}.{again}", again + 1
        return name

    def add(
        self, version: int, directory: Path, expected: tuple[float, ...] = (), whole: WholeWeights | None = None
    ) -> Publication:
        """Register weights that are about to be loaded; they serve no request until `announce`."""
        with self._lock:
            publication = Publication(version, self._serial, self.next_name(version), directory, expected, whole)
            self._serial += 1
            self._used_names.add(publication.name)
            self._known[publication.name] = publication
            return publication

    def announce(self, publication: Publication) -> None:
        """New requests are served with `publication` from now on."""
        with self._lock:
            self._current = publication

    def forget(self, publication: Publication) -> None:
        """It could not be loaded."""
        with self._lock:
            self._known.pop(publication.name, None)

    @contextmanager
    def in_use(self) -> Iterator[Publication]:
        """The current publication, which stays loaded for the time of one request."""
        with self._lock:
            publication = self._current
            if publication is None:
                raise RuntimeError("no weights were published yet: call update_weights first")
            self._in_flight[publication.name] = self._in_flight.get(publication.name, 0) + 1
        try:
            yield publication
        finally:
            with self._lock:
                self._in_flight[publication.name] -= 1

    def version_of(self, name: str) -> int | None:
        """The version published as `name`; None for a name that is not ours or is needed no more."""
        publication = self._known.get(name)
        return None if publication is None else publication.version

    def take_unneeded(self) -> list[Publication]:
        """Publications older than the current one that serve no request, oldest first; each is returned once."""
        with self._lock:
            current = self._current
            unneeded = [
                publication
                for publication in self._known.values()
                if current is not None
                and publication.serial < current.serial
                and not self._in_flight.get(publication.name)
            ]
            for publication in unneeded:
                del self._known[publication.name]
                self._in_flight.pop(publication.name, None)
            return unneeded

    def take_all(self) -> list[Publication]:
        """Everything known, for closing."""
        with self._lock:
            known, self._current = list(self._known.values()), None
            self._known.clear()
            return known
