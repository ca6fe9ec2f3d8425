"""The application, and running it: in the foreground, or in a thread of a test."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.request import ProxyHandler, build_opener

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cua_agent.envs.local_gbox import action_routes, box_routes
from cua_agent.envs.local_gbox.errors import ApiError, error_body
from cua_agent.envs.local_gbox.fleet import Fleet
from cua_agent.envs.local_gbox.middleware import API, TRANSPORT, FaultInjection, KeyCheck
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.proxies import is_loopback

LEDGER = "/ledger"
START_TIMEOUT_S = 30.0
_DIRECT = build_opener(ProxyHandler({}))
KEEP_ALIVE_S = 600
"""Longer than a model thinks between two actions: a connection closed just then would be a fault nobody asked for."""


class DroppableProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with the connection in every request's scope so that a fault can drop it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        inner = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope[TRANSPORT] = transport
            with suppress(asyncio.CancelledError):  # the server closes, see `Server.shutdown`
                await inner(scope, receive, send)  # type: ignore[arg-type]

        self.app = with_transport  # type: ignore[assignment]


class Server(uvicorn.Server):
    """uvicorn's server, which on its end drops requests that are still under way: a hanging one would hold it up."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.01)  # lets the connections notice
        for task in list(self.server_state.tasks):
            task.cancel()
        await super().shutdown(sockets)


def make_app(options: LocalGBoxOptions, clock: Callable[[], float] = time.time) -> FastAPI:
    """The API under /api/v1, and outside of it `GET /ledger`, which needs the key where other machines reach it, and
    the pictures behind storage keys."""
    fleet = Fleet(options, clock)
    app = FastAPI(title="Local GBox")
    app.state.fleet = fleet
    app.include_router(box_routes.router, prefix=API)
    app.include_router(action_routes.router, prefix=API)
    app.add_middleware(FaultInjection, fleet=fleet)
    guarded = (API,) if is_loopback(options.host) else (API, LEDGER)
    app.add_middleware(KeyCheck, key=options.api_key, guarded=guarded)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get(LEDGER)
    async def ledger() -> dict[str, object]:
        return fleet.report()

    @app.get("/storage/{key:path}")
    async def stored(key: str) -> Response:
        png = fleet.gallery.stored(key, fleet.clock())
        if png is None:
            raise ApiError(404, "no such picture, or its link has expired")
        return Response(png, media_type="image/png")

    return app


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(error.status, error.message), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; the local GBox serves no such endpoint"
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


async def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    """422, naming every field that is wrong and what was expected."""
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(_sentence(fault) for fault in error.errors())
    return JSONResponse(error_body(422, faults), 422)


def _sentence(fault: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in fault["loc"] if part not in ("body", "with", "without"))
    return f"{path or 'body'}: {fault['msg']}"


@dataclass(frozen=True)
class LocalGBox:
    """A running server. `base_url` and `api_key` are what the SDK's clients take."""

    origin: str
    api_key: str

    @property
    def base_url(self) -> str:
        """What `env.args.base_url` takes."""
        return f"{self.origin}{API}/"

    def ledger(self) -> dict[str, Any]:
        """What `GET /ledger` answers."""
        with _DIRECT.open(f"{self.origin}/ledger") as response:  # over HTTP: the fleet lives on another thread
            report: dict[str, Any] = json.load(response)
        return report


def listen(options: LocalGBoxOptions) -> socket.socket:
    """A listening socket on the wanted port. Raises `OSError` when it is taken."""
    listener = socket.create_server((options.host, options.port))
    listener.set_inheritable(True)
    return listener


def origin_of(listener: socket.socket) -> str:
    """The `http://host:port` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


def make_server(app: FastAPI) -> Server:
    """The HTTP server of an application, not started yet."""
    config = uvicorn.Config(
        app,
        http=DroppableProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    return Server(config)


@contextmanager
def running(options: LocalGBoxOptions | None = None, clock: Callable[[], float] = time.time) -> Iterator[LocalGBox]:
    """A server in a thread of this process, until the block is left."""
    options = options or LocalGBoxOptions()
    app = make_app(options, clock)
    server = make_server(app)
    with listen(options) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="local-gbox", daemon=True)
        thread.start()
        try:
            _wait_until(lambda: server.started or not thread.is_alive())
            if not server.started:
                raise RuntimeError("the local GBox did not start")
            yield LocalGBox(origin_of(listener), options.api_key)
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)


def _wait_until(condition: Callable[[], bool]) -> None:
    """Raises `TimeoutError` after `START_TIMEOUT_S`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the local GBox did not start in time")
        time.sleep(0.01)
