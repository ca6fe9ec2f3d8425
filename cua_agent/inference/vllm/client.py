"""Sending calls to vLLM servers and sorting their answers, for threads (`ControlClient`) and tasks (`SamplingClient`).

Neither retries: whoever calls knows whether the same call may be made again, and on which server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx

from cua_agent.inference.vllm.errors import Refused, ServerMismatch, Unavailable
from cua_agent.inference.vllm.key_check import KEY_VARIABLE
from cua_agent.inference.vllm.wire import HEALTH, Call
from cua_agent.proxies import proxy_hint, proxy_of, proxy_options
from cua_agent.secrets import mask_text, read_key

CONNECT_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 30.0
"""Longest wait for an answer of a server that has nothing to load."""
LOADING_TIMEOUT_S = 600.0
"""Loading the full weights of a large model takes minutes."""
KEEPALIVE_S = 3.0
"""Shorter than the servers' 5 s, so that a connection is rarely closed under a request."""
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_INTERNAL_ERROR = 500
_PROXY_SCHEMES = ("http", "https")
_SHOWN = 300


def read_answer(url: str, response: httpx.Response, *, passing: frozenset[int] = _PASSING) -> Any:
    """The JSON of a good answer, None when it is empty.

    Raises `Unavailable` for a status in `passing`, `Refused` for any other bad one.
    """
    if response.is_success:
        try:
            return response.json() if response.content else None
        except ValueError:
            return response.text
    message = f"{url} answered {response.status_code}: {_reason(response)}"
    if response.status_code in passing:
        raise Unavailable(message, _retry_after(response))
    raise Refused(message, response.status_code)


def encode_body(call: Call) -> bytes | None:
    """The body of a request; None when it has none."""
    return None if call.body is None else json.dumps(call.body, separators=(",", ":")).encode()


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        text = body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(mask_text(str(text)).split())[:_SHOWN]


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0


def _headers() -> dict[str, str]:
    """What shows the servers their key. Raises `BadKey`."""
    key = read_key(KEY_VARIABLE)
    return {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}


def _no_answer(url: str, error: httpx.TransportError | aiohttp.ClientError | TimeoutError) -> Unavailable:
    why = f"{type(error).__name__} {mask_text(str(error))}".rstrip()
    return Unavailable(f"{url} gives no answer: {why}{proxy_hint(url)}")


class ControlClient:
    """Blocking calls to one server: health, weights, caches. May be used from several threads."""

    def __init__(self, url: str, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(LOADING_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._quick = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        limits = httpx.Limits(keepalive_expiry=KEEPALIVE_S)
        if (proxy := proxy_of(self.url)) and urlsplit(proxy).scheme not in _PROXY_SCHEMES:
            kind = urlsplit(proxy).scheme
            raise ServerMismatch(f"{self.url}: the environment's proxy cannot be used: {kind}, allowed: http, https")
        options = proxy_options([self.url])
        self._http = httpx.Client(base_url=self.url, headers=_headers(), timeout=timeout, limits=limits, **options)

    def call(self, call: Call) -> Any:
        """Raises `Unavailable` (also when the server's engine died: it will be restarted) or `Refused`."""
        response = self._send(call)
        dying = response.status_code == _INTERNAL_ERROR and not self._send(Call("GET", HEALTH)).is_success
        return read_answer(self.url, response, passing=_PASSING | {_INTERNAL_ERROR} if dying else _PASSING)

    def _send(self, call: Call) -> httpx.Response:
        loads = call.method == "POST"
        limit: Any = {} if loads else {"timeout": self._quick}
        try:
            return self._http.request(call.method, call.path, json=call.body, params=dict(call.query), **limit)
        except httpx.TransportError as error:
            raise _no_answer(self.url, error) from error

    def close(self) -> None:
        self._http.close()


class SamplingClient:
    """Sampling requests to the servers at `urls`, many at a time, on the running event loop.

    Made of aiohttp: httpx looks at all of its connections whenever one becomes free, which costs 5 ms of the processor
    a request when there are 64.
    """

    def __init__(self, urls: Sequence[str], connections: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._proxies = {url: proxy_of(url) for url in urls}
        self._http = aiohttp.ClientSession(
            headers=_headers(),
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )

    async def call(self, url: str, call: Call) -> Any:
        """Raises `Unavailable` (also for a 500: sampling acts on nothing, and an engine that died comes back) or
        `Refused`. A cancelled call closes its connection, upon which the server drops the request."""
        asked = self._http.request(
            call.method,
            url + call.path,
            data=encode_body(call),
            headers={"content-type": "application/json"},
            params=call.query,
            proxy=self._proxies.get(url),
            allow_redirects=False,
        )
        try:
            async with asyncio.timeout(self._timeout_s), asked as answer:
                content, headers = await answer.read(), {"retry-after": answer.headers.get("retry-after", "0")}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _no_answer(url, error) from error
        response = httpx.Response(answer.status, headers=headers, content=content)
        return read_answer(url, response, passing=_PASSING | {_INTERNAL_ERROR})

    async def close(self) -> None:
        await self._http.close()
