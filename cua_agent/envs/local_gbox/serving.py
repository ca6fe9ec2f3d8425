"""What the endpoints share: the fleet, the turn on a device, and the ledger's entry of what was done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request

from cua_agent.envs.local_gbox.bodies import Body
from cua_agent.envs.local_gbox.fleet import Box, Fleet
from cua_agent.envs.local_gbox.middleware import ENTRY


async def _the_fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


TheFleet = Annotated[Fleet, Depends(_the_fleet)]


@asynccontextmanager
async def turn_on(fleet: Fleet, box_id: str) -> AsyncIterator[Box]:
    """The running box, for one request at a time, after its latency. Raises `ApiError` when it does not run."""
    box = fleet.running(box_id)
    async with box.lock:
        await asyncio.sleep(box.latency.sample())
        yield fleet.running(box_id)  # it may have ended meanwhile


def record(fleet: Fleet, request: Request, box: Box, action: str, body: Body) -> None:
    """Write what was executed into the ledger, where the fault injection finds it again."""
    retry = request.headers.get("x-stainless-retry-count", "0")
    content = body.model_dump(by_alias=True, exclude_unset=True, mode="json")
    entry = fleet.ledger.executed(box.id, action, content, int(retry) if retry.isdecimal() else 0)
    setattr(request.state, ENTRY, entry)
