"""The processes of a server that runs on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import psutil


def listening_at(url: str) -> list[psutil.Process]:
    """The process that listens there, when it can be seen from here."""
    port = urlsplit(url).port
    return [
        psutil.Process(each.pid)
        for each in psutil.net_connections("tcp")
        if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN
    ][:1]


def children_of(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """All of them, theirs included."""
    return [child for each in processes for child in each.children(recursive=True)]


def processor_seconds(processes: Iterable[psutil.Process]) -> float:
    """Of `processes` so far."""
    return sum(sum(each.cpu_times()[:2]) for each in processes)
