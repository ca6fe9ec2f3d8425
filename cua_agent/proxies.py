"""Servers on this machine are asked directly, whatever proxy the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cua_agent.secrets import mask_text

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def is_local(url: str) -> bool:
    """Whether `url` names this machine: localhost, a loopback address, or the address of all interfaces."""
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server that listens on `host`. Names other than localhost may be any
    address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_options(urls: Iterable[str]) -> dict[str, Any]:
    """Options for an httpx client of `urls`, so that the proxies of the environment serve the others only."""
    local = {_host_pattern(url): None for url in urls if is_local(url)}
    everything = all(is_local(url) for url in urls)
    return {"trust_env": False} if everything else {"mounts": local}


def _host_pattern(url: str) -> str:
    host = urlsplit(url).hostname or ""
    return f"all://[{host}]" if ":" in host else f"all://{host}"


def proxy_of(url: str) -> str | None:
    """The environment's proxy for `url`; None where it is asked directly."""
    if is_local(url):
        return None
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if proxy is None or proxy_bypass(parts.hostname or "") else proxy


def proxy_hint(url: str) -> str:
    """` (asked through the proxy ...)` for an error's message, empty where `url` is asked directly."""
    proxy = proxy_of(url)
    if proxy is None:
        return ""
    return f" (asked through the proxy {mask_text(proxy)}; NO_PROXY={urlsplit(url).hostname} asks it directly)"


def bypass_proxies(hosts: Iterable[str], environment: MutableMapping[str, str] | None = None) -> None:
    """Have every library of this process and its children ask `hosts` directly: they are added to NO_PROXY, if the
    environment names a proxy at all."""
    environment = os.environ if environment is None else environment
    names = ("http_proxy", "https_proxy", "all_proxy")
    if not any(environment.get(name) or environment.get(name.upper()) for name in names):
        return
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    known = [host.strip() for host in listed.split(",") if host.strip()]
    value = ",".join(dict.fromkeys([*known, *hosts]))
    environment["no_proxy"] = environment["NO_PROXY"] = value
