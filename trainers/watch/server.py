"""The local server of the pages: on loopback, for one person; it only reads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from trainers.episodes.files import EPISODES
from trainers.watch.recording import Recording
from trainers.watch.views import answer

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SCREEN = re.compile(r"[\w-][\w.-]*/[0-9a-f]+\.webp")
_LOOK_S = 0.5
_BEAT_LOOKS = 20


class Watch:
    """What the server knows: its recordings, read anew when somebody asks, one at a time."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = recordings
        self._lock = asyncio.Lock()

    async def data(self, request: Request) -> Response:
        """The data of a view."""
        name = request.path_params["name"]
        async with self._lock:
            found = await asyncio.to_thread(self._answer, name)
        if found is None:
            return PlainTextResponse("there is no such thing", status_code=404)
        return Response(found, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def screen(self, request: Request) -> Response:
        """A screenshot; what its name holds never changes."""
        run, part, name = (request.path_params[key] for key in ("run", "part", "name"))
        known = run < len(self.recordings) and part < len(self.recordings[run].parts)
        if known and SCREEN.fullmatch(name) and (path := self.recordings[run].screen(part, name)).is_file():
            return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "max-age=86400, immutable"})
        return PlainTextResponse("this screen is not kept", status_code=404)

    async def events(self, request: Request) -> Response:
        """A line whenever files of a run have changed."""
        return StreamingResponse(self._changes(request), media_type="text/event-stream")

    async def _changes(self, request: Request) -> AsyncIterator[str]:
        before: Any = None
        looks = 0
        while not await request.is_disconnected():
            state = await asyncio.to_thread(self._state)
            looks += 1
            if state != before:
                before = state
                yield "data: changed\n\n"
            elif looks % _BEAT_LOOKS == 0:
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_S)

    def _answer(self, name: str) -> bytes | None:
        for recording in self.recordings:
            recording.refresh()
        found = answer(self.recordings, name)
        return None if found is None else json.dumps(found).encode()

    def _state(self) -> list[tuple[str, int, int]]:
        """Sizes and times of the files that are read."""
        found = []
        for recording in self.recordings:
            files = [*recording.directory.glob("*.json*"), *(recording.directory / EPISODES).glob("*.json*")]
            for path in files:
                try:
                    about = path.stat()
                except OSError:
                    continue
                found.append((str(path), about.st_mtime_ns, about.st_size))
        return found


def application(recordings: Sequence[Recording]) -> Starlette:
    """The pages of `recordings`. Requests that name another host are refused: a page elsewhere cannot read along."""
    watch = Watch(recordings)

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

    return Starlette(
        routes=[
            Route("/", page),
            Route("/events", watch.events),
            Route("/data/{name:path}", watch.data),
            Route("/screens/{run:int}/{part:int}/{name:path}", watch.screen),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )
