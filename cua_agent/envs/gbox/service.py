"""The service as a whole: the client, and finding and ending boxes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from gbox_sdk import AsyncGboxClient, ConflictError, DefaultAsyncHttpxClient, NotFoundError, not_given

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gbox.calls import CallRefused, Patience, UnusableReply, call, may_pass
from cua_agent.envs.gbox.settings import GBoxSettings, address, api_key
from cua_agent.proxies import proxy_options

PATIENCE = Patience(deadline_s=30.0)
"""With calls that concern no running episode."""
_KEEP_ALIVE_S = 3.0
"""Idle connections are given up before a server does it: a call that acts is lost when its connection is."""
_PAGE = 100
_ENDS_AT_A_TIME = 8


def new_client(settings: GBoxSettings) -> AsyncGboxClient:
    """The SDK's client, without retries of its own. Raises `WorldUnavailable` when there is no key, or a proxy that
    cannot be used."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S)
    key = api_key(settings).get_secret_value()
    try:
        http = DefaultAsyncHttpxClient(limits=limits, **proxy_options([address(settings)]))
    except (ImportError, ValueError) as error:  # SOCKS without its package, an address that is none
        raise WorldUnavailable(f"env=gbox: the environment's proxy cannot be used: {error}") from None
    return AsyncGboxClient(api_key=key, base_url=settings.base_url or not_given, max_retries=0, http_client=http)


@dataclass(frozen=True)
class BoxInfo:
    """What a list says about a box."""

    id: str
    type: str
    status: str
    labels: Mapping[str, str]
    created_at: datetime

    @property
    def age_s(self) -> float:
        """Seconds since the box was created."""
        return (datetime.now(UTC) - self.created_at).total_seconds()


async def list_boxes(
    client: AsyncGboxClient, labels: Mapping[str, str], patience: Patience = PATIENCE
) -> list[BoxInfo]:
    """The boxes that carry all of `labels` and have not ended. Raises `EnvironmentFailure`."""
    found: list[BoxInfo] = []
    page, seen = 1, 0
    while True:
        boxes, total = await _page(client, labels, page, patience)
        found += [box for box in boxes if box.labels.items() >= labels.items() and box.status != "terminated"]
        page, seen = page + 1, seen + len(boxes)
        if not boxes or seen >= total:
            return found


async def _page(
    client: AsyncGboxClient, labels: Mapping[str, str], page: int, patience: Patience
) -> tuple[list[BoxInfo], int]:
    async def make() -> tuple[list[BoxInfo], int]:
        reply = await client.v1.boxes.list(
            labels=dict(labels),
            page=page,
            page_size=_PAGE,
            status=["pending", "running", "error"],
            timeout=patience.deadline_s,
        )
        try:
            return [_info(box) for box in reply.data], int(reply.total)
        except (AttributeError, TypeError) as error:
            raise UnusableReply("an answer without a list of boxes") from error

    try:
        return await call("list", make, patience, may_pass)
    except CallRefused as error:
        raise EnvironmentFailure(f"list: {error}") from error


def _info(box: Any) -> BoxInfo:
    created = box.created_at
    return BoxInfo(box.id, box.type, box.status, box.config.labels, created if created.tzinfo else created.replace(UTC))


async def end_box(client: AsyncGboxClient, box_id: str, patience: Patience = PATIENCE) -> None:
    """End a box; one that has ended already is none the worse for it. Raises `EnvironmentFailure`."""

    async def make() -> None:
        try:
            await client.v1.boxes.terminate(box_id, wait=True, timeout=patience.deadline_s)
        except (NotFoundError, ConflictError):
            return  # it is gone, or going

    try:
        await call("terminate", make, patience, may_pass)
    except CallRefused as error:
        raise EnvironmentFailure(f"terminate: {error}") from error


async def end_boxes(client: AsyncGboxClient, boxes: Iterable[BoxInfo], patience: Patience = PATIENCE) -> dict[str, str]:
    """End all of `boxes`, a few at a time; returns why some could not be, by id."""
    slots = asyncio.Semaphore(_ENDS_AT_A_TIME)
    failures: dict[str, str] = {}

    async def end(box: BoxInfo) -> None:
        async with slots:
            try:
                await end_box(client, box.id, patience)
            except EnvironmentFailure as error:
                failures[box.id] = str(error)

    await asyncio.gather(*map(end, boxes))
    return failures
