"""Around every API request: the key is checked, and faults are injected before or after the request took effect."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cua_agent.envs.local_gbox.errors import error_body
from cua_agent.envs.local_gbox.faults import Fault, FaultKind, Operation
from cua_agent.envs.local_gbox.fleet import Box, Fleet
from cua_agent.envs.local_gbox.images import DATA_URI, cut_short
from cua_agent.envs.local_gbox.ledger import CLIENT_GONE, ActionEntry, FaultEntry

API = "/api/v1"
TRANSPORT = "local_gbox.transport"
"""Key of the request's connection in the ASGI scope; `server.DroppableProtocol` puts it there."""
ENTRY, EXTRA_CREATE_S = "entry", "extra_create_s"
"""Keys of the request's state: the ledger entry that a route wrote, and the seconds that a fault adds to a create."""

_QUERIES = {"display", "actions/settings", ""}


class KeyCheck:
    """Answers 401 to API requests without the right bearer key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(API):
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(shown, self._wanted):
                await JSONResponse(error_body(401, "the API key is missing or wrong"), 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass
class Answer:
    """A response of the application, held back until it is known what becomes of it."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def collect(self, message: Message) -> None:
        """An ASGI `send` that keeps what it is given."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")

    def response(self) -> Response:
        response = Response(self.body, self.status)
        kept = [(key, value) for key, value in self.headers if key.lower() != b"content-length"]
        if self.body or self.status not in (204, 304):
            kept.append((b"content-length", str(len(self.body)).encode()))
        response.raw_headers = kept
        return response


class FaultInjection:
    """Lets the fleet's faults happen to API requests, and writes them into the ledger."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        self._app = app
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        operation, box_id = classify(scope["method"], scope["path"].removeprefix(API))
        box = self._fleet.find(box_id)
        fault = self._decide(operation, box)
        state = scope.setdefault("state", {})
        if fault and not fault.after:
            self._note(fault, operation, box_id)
            if await self._before(fault, box, scope, receive, send):
                return
        answer = Answer()
        await self._app(scope, receive, answer.collect)
        entry: ActionEntry | None = state.get(ENTRY)
        if fault and fault.after:
            await self._after(fault, operation, box, answer, entry, scope, receive, send)
            return
        if entry and await Request(scope, receive).is_disconnected():
            entry.lost = CLIENT_GONE
        if box and entry and operation is Operation.ACTION:
            box.last_answer = answer.body
        await answer.response()(scope, receive, send)

    def _decide(self, operation: Operation, box: Box | None) -> Fault | None:
        counts: Counter[str] = box.requests if box else self._fleet.requests
        counts[operation] += 1
        stream = str(box.ordinal) if box else ""
        return self._fleet.options.faults.decide(stream, operation, counts[operation])

    def _note(self, fault: Fault, operation: Operation, box_id: str) -> None:
        self._fleet.ledger.faults.append(FaultEntry(fault.kind, operation, box_id, fault.after))

    async def _before(self, fault: Fault, box: Box | None, scope: Scope, receive: Receive, send: Send) -> bool:
        """Break a request that has not taken effect; returns whether it is over."""
        if fault.kind is FaultKind.DEATH:
            if box:
                self._fleet.kill(box, fault.status)
            return False
        if fault.kind is FaultKind.SLOW_CREATE:
            scope["state"][EXTRA_CREATE_S] = self._fleet.options.slow_create_s
            return False
        await self._spoil(fault, scope, receive, send)
        return True

    async def _after(
        self,
        fault: Fault,
        operation: Operation,
        box: Box | None,
        answer: Answer,
        entry: ActionEntry | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Break the answer of a request that has taken effect."""
        former = box.last_answer if box else None
        if box and entry and operation is Operation.ACTION:
            box.last_answer = answer.body
        if fault.kind in (FaultKind.TRUNCATED_IMAGE, FaultKind.DUPLICATE):
            spoiled = former if fault.kind is FaultKind.DUPLICATE else truncated(answer.body)
            if answer.status >= 400 or spoiled is None:
                # There is nothing to repeat or to cut: no fault.
                await answer.response()(scope, receive, send)
                return
            answer.body = spoiled
        self._note(fault, operation, box.id if box else "")
        if entry:
            entry.lost = fault.kind
        if fault.kind in (FaultKind.TRUNCATED_IMAGE, FaultKind.DUPLICATE):
            await answer.response()(scope, receive, send)
        else:
            await self._spoil(fault, scope, receive, send)

    async def _spoil(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a bad answer, or none."""
        status, headers = fault.status, {}
        if fault.kind is FaultKind.DROP:
            scope[TRANSPORT].abort()
            await _hung_up(receive)
            return
        if fault.kind is FaultKind.TIMEOUT:
            try:
                await asyncio.wait_for(_hung_up(receive), self._fleet.options.hang_s)
                return
            except TimeoutError:
                status = 504
        if fault.kind is FaultKind.RATE_LIMIT:
            status, headers = 429, {"Retry-After": str(self._fleet.options.retry_after_s)}
        await JSONResponse(error_body(status, f"injected fault: {fault.kind}"), status, headers)(scope, receive, send)


def classify(method: str, path: str) -> tuple[Operation, str]:
    """What a request does, and the id of the box it concerns ("" for none)."""
    if path == "/model":
        return Operation.MODEL, ""
    if path in ("/boxes/android", "/boxes/linux") and method == "POST":
        return Operation.CREATE, ""
    match = re.fullmatch(r"/boxes/([^/]+)/?(.*)", path)
    if match is None:
        return Operation.QUERY, ""
    box_id, call = match.groups()
    if method == "GET" or call in _QUERIES:
        return Operation.QUERY, box_id
    operations = {
        "terminate": Operation.TERMINATE,
        "commands": Operation.COMMAND,
        "actions/screenshot": Operation.SCREENSHOT,
    }
    return operations.get(call, Operation.ACTION), box_id


def truncated(body: bytes) -> bytes | None:
    """A JSON answer with every picture in it cut short; None when it holds none."""
    found = False

    def cut(value: dict[str, Any]) -> dict[str, Any]:
        nonlocal found
        uri = value.get("uri")
        if isinstance(uri, str) and uri.startswith(DATA_URI):
            found = True
            return {**value, "uri": cut_short(uri)}
        return value

    cut_body = json.dumps(json.loads(body, object_hook=cut)).encode() if body else b""
    return cut_body if found else None


async def _hung_up(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
