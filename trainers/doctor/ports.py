"""Addresses on this machine: free where something has to be started, held by what should be there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from cua_agent.proxies import is_local
from trainers.config import TrainConfig
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, error, ok, worst

_TIMEOUT_S = 3.0


def ports(context: Context) -> Finding:
    """Nothing else sits on the ports of this machine's servers, and a port for the process group can be had."""
    return worst([_any_port(), *(_who_is_at(kind, url) for kind, url in local_services(context.config))])


def local_services(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Kind and address of the services on this machine that the run talks to."""
    if config.inference.name == "vllm":
        yield from (("vLLM", url) for url in config.inference.servers if is_local(url))
    gbox = config.env.args.get("base_url") if config.env.name == "gbox" else None
    if gbox is not None and is_local(gbox):
        yield "GBox", gbox


def _any_port() -> Finding:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as problem:
        return error(
            f"no port on 127.0.0.1 can be had: {problem.strerror}", "a network namespace with a loopback device"
        )
    return ok("a port on 127.0.0.1 can be had")


def _who_is_at(kind: str, url: str) -> Finding:
    """Whether a service of that kind is there, or nobody."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.socket() as probe:
        probe.settimeout(_TIMEOUT_S)
        if probe.connect_ex((parts.hostname or "127.0.0.1", port)) != 0:
            return ok(f"port {port} is free for {kind}")
    path = "/v1/models" if kind == "vLLM" else "/boxes"
    try:
        answer = httpx.get(url.rstrip("/") + path, timeout=_TIMEOUT_S, trust_env=False)
        known = answer.status_code in (200, 401, 403) and "json" in answer.headers.get("content-type", "")
    except httpx.HTTPError:
        known = False
    if known:
        return ok(f"port {port} is {kind}'s")
    return error(f"port {port} is taken by something that is no {kind}", f"stop it, or start {kind} on another port")
