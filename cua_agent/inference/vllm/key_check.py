"""What a vLLM server lacks that is started with a key: vLLM asks for it below `/v1` and `/inference` only, so that
everybody could still change the weights through the endpoints of dev mode. This module runs inside the server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cua_agent.inference.vllm.wire import HEALTH

MIDDLEWARE = f"{__name__}.KeyCheck"
KEY_VARIABLE = "VLLM_API_KEY"

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class KeyCheck:
    """ASGI middleware: 401 for every request without the key in `VLLM_API_KEY`, but for the server's health."""

    def __init__(self, app: _App) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ[KEY_VARIABLE].strip()}".encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") == HEALTH or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "the API key is missing"}}'})
        else:  # a websocket
            await send({"type": "websocket.close", "code": 1008})

    def _is_known(self, scope: _Message) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(shown, self._wanted)
