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
from cua_agent.envs.local_gbox.faults import ALWAYS_AFTER, Fault, FaultKind, Operation
from cua_agent.envs.local_gbox.fleet import Box, Fleet
from cua_agent.envs.local_gbox.images import cut_short
from cua_agent.envs.local_gbox.ledger import CLIENT_GONE, ActionEntry, FaultEntry
from cua_agent.image_bytes import PNG_URI

API = "/api/v1"
TRANSPORT = "local_gbox.transport"
"""Key of the request's connection in the ASGI scope; `server.DroppableProtocol` puts it there."""
ENTRY, EXTRA_CREATE_S = "entry", "extra_create_s"
"""Keys of the request's state: the ledger entry that a route wrote, and the seconds that a fault adds to a create."""

_QUERIES = {"display", "actions/settings", ""}


class KeyCheck:
    """Answers 401 to requests below `guarded` without the right bearer key."""

    def __init__(self, app: ASGIApp, key: str, guarded: tuple[str, ...]) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._guarded):
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
        """What was recorded, as a response to send again."""
        response = Response(self.body, self.status)
        kept = [(key, value) for key, value in self.headers if key.lower() != b"content-length"]
        if self.body or self.status not in (204, 304):
            kept.append((b"content-length", str(len(self.body)).encode()))
        response.raw_headers = kept
        return response


@dataclass
class Exchange:
    """One API request on its way through: what it does, to which box (None: to none, or an unknown one)."""

    scope: Scope
    receive: Receive
    send: Send
    operation: Operation
    box: Box | None

    @property
    def entry(self) -> ActionEntry | None:
        """What the application wrote into the ledger; None as long as nothing was executed."""
        entry: ActionEntry | None = self.scope["state"].get(ENTRY)
        return entry

    async def reply(self, response: Response) -> None:
        """Send `response` in place of the application's."""
        await response(self.scope, self.receive, self.send)

    async def until_hung_up(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def is_hung_up(self) -> bool:
        """Whether the client has gone."""
        return await Request(self.scope, self.receive).is_disconnected()


class FaultInjection:
    """Lets the fleet's faults happen to API requests, and writes them into the ledger."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        self._app = app
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        operation, box_id = classify(scope["method"], scope["path"].removeprefix(API))
        exchange = Exchange(scope, receive, send, operation, self._fleet.find(box_id))
        fault = self._decide(exchange)
        if fault and not fault.after and await self._is_over_before(fault, exchange):
            return
        answer = Answer()
        await self._app(scope, receive, answer.collect)
        if fault and fault.after:
            await self._break_answer(fault, exchange, answer)
            return
        if await exchange.is_hung_up():
            if exchange.entry:
                exchange.entry.lost = CLIENT_GONE
        elif operation is Operation.SCREENSHOT and answer.status < 400:
            self._fleet.ledger.looked(box_id)
        await self._deliver(exchange, answer)

    def _decide(self, exchange: Exchange) -> Fault | None:
        box, operation = exchange.box, exchange.operation
        counts: Counter[str] = box.requests if box else self._fleet.requests
        counts[operation] += 1
        stream = str(box.ordinal) if box else ""
        return self._fleet.options.faults.decide(stream, operation, counts[operation])

    def _note(self, fault: Fault, exchange: Exchange) -> None:
        box_id = exchange.box.id if exchange.box else ""
        self._fleet.ledger.faults.append(FaultEntry(fault.kind, exchange.operation, box_id, fault.after))
        if exchange.entry:
            exchange.entry.lost = fault.kind

    async def _deliver(self, exchange: Exchange, answer: Answer) -> None:
        """Send an answer; that of an executed action may be repeated by a later fault."""
        if exchange.box and exchange.entry and exchange.operation is Operation.ACTION:
            exchange.box.last_answer = answer.body
        await exchange.reply(answer.response())

    async def _is_over_before(self, fault: Fault, exchange: Exchange) -> bool:
        """Break a request that has not taken effect; False when the application is to answer it."""
        if fault.kind is FaultKind.DEATH:
            if exchange.box and self._fleet.kill(exchange.box, fault.status):
                self._note(fault, exchange)
            return False
        self._note(fault, exchange)
        if fault.kind is FaultKind.SLOW_CREATE:
            exchange.scope["state"][EXTRA_CREATE_S] = self._fleet.options.slow_create_s
            return False
        await self._spoil(fault, exchange)
        return True

    async def _break_answer(self, fault: Fault, exchange: Exchange, answer: Answer) -> None:
        """Break the answer of a request that the application has dealt with."""
        if fault.kind in ALWAYS_AFTER:
            former = exchange.box.last_answer if exchange.box and exchange.entry else None
            spoiled = former if fault.kind is FaultKind.DUPLICATE else truncated(answer.body)
            if spoiled is not None:  # else there is nothing to repeat or to cut: no fault
                self._note(fault, exchange)
                answer.body = spoiled
            await self._deliver(exchange, answer)
            return
        self._note(fault, exchange)
        await self._spoil(fault, exchange)

    async def _spoil(self, fault: Fault, exchange: Exchange) -> None:
        """Give a bad answer, or none."""
        options, status, headers = self._fleet.options, fault.status, {}
        if fault.kind is FaultKind.DROP:
            exchange.scope[TRANSPORT].abort()
            await exchange.until_hung_up()
            return
        if fault.kind is FaultKind.TIMEOUT:
            try:
                await asyncio.wait_for(exchange.until_hung_up(), options.hang_s)
                return
            except TimeoutError:
                status = 504
        if fault.kind is FaultKind.RATE_LIMIT:
            status, headers = 429, {"Retry-After": str(options.retry_after_s)}
        await exchange.reply(JSONResponse(error_body(status, f"injected fault: {fault.kind}"), status, headers))


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
        if isinstance(uri, str) and uri.startswith(PNG_URI):
            found = True
            return {**value, "uri": cut_short(uri)}
        return value

    cut_body = json.dumps(json.loads(body, object_hook=cut)).encode() if body else b""
    return cut_body if found else None
