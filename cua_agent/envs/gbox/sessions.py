"""What this machine knows of sessions whose processes were killed: their boxes are ended by the next one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cua_agent.scratch import held, is_abandoned

_PREFIX, _FILE = "gbox-session-", "session.json"


@dataclass(frozen=True)
class SessionRecord:
    """The directory that stands for a session as long as it may have boxes; locked while its process lives."""

    path: Path
    service: str
    session: str

    def delete(self) -> None:
        """No box of the session is left."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def recorded(service: str, session: str) -> Iterator[SessionRecord]:
    """A record of this process's `session` on the service at the address `service`. It stays, unless it is deleted."""
    record = SessionRecord(Path(tempfile.mkdtemp(prefix=_PREFIX)), service, session)
    with held(record.path):
        (record.path / _FILE).write_text(json.dumps({"service": service, "session": session}), encoding="utf-8")
        yield record


def dead_sessions(service: str) -> list[SessionRecord]:
    """The sessions on `service` whose processes are dead."""
    places = [path for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if is_abandoned(path)]
    return [record for record in map(_read, places) if record is not None and record.service == service]


def _read(path: Path) -> SessionRecord | None:
    try:
        content = json.loads((path / _FILE).read_text(encoding="utf-8"))
        return SessionRecord(path, str(content["service"]), str(content["session"]))
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written, so before any box
        return None
