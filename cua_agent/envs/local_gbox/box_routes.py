"""Endpoints of a box's life: create, get, list, terminate, display, settings, shell."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Depends, Request, Response

from cua_agent.envs.local_gbox import bodies, shell
from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.fleet import Box, Fleet
from cua_agent.envs.local_gbox.ledger import COMMAND
from cua_agent.envs.local_gbox.middleware import EXTRA_CREATE_S
from cua_agent.envs.local_gbox.replies import (
    BoxConfig,
    BoxList,
    BoxOs,
    BoxReply,
    BoxType,
    CommandReply,
    Display,
    Resolution,
    SettingsReply,
    Status,
)
from cua_agent.envs.local_gbox.serving import TheFleet, record, turn_on

router = APIRouter()

_OS = {"android": "13", "linux": "ubuntu-22.04"}
_WORKING_DIR = {"android": "/data/local/tmp", "linux": "/home/gbox"}
_LABEL = re.compile(r"labels\[(.+)\]")
_DEVICE_TYPES = ("virtual", "physical")
_MAX_PAGE_SIZE = 100


def reply_of(box: Box) -> BoxReply:
    """What the API tells of a box."""
    config = BoxConfig(
        cpu=2,
        envs=box.envs,
        labels=box.labels,
        memory=2048,
        os=BoxOs(version=_OS[box.type]),
        storage=16,
        device_type=box.device_type,
        working_dir=_WORKING_DIR[box.type],
    )
    return BoxReply(
        id=box.id,
        type=box.type,
        status=box.status,
        config=config,
        created_at=_time(box.created_at),
        updated_at=_time(box.updated_at),
        expires_at=_time(box.expires_at),
        reason=box.reason,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@router.post("/boxes/android", status_code=201, response_model_exclude_none=True)
async def create_android(fleet: TheFleet, request: Request, body: bodies.CreateAndroid | None = None) -> BoxReply:
    """Start a phone."""
    body = body or bodies.CreateAndroid()
    return await _create(fleet, request, "android", body, body.config.device_type)


@router.post("/boxes/linux", status_code=201, response_model_exclude_none=True)
async def create_linux(fleet: TheFleet, request: Request, body: bodies.CreateLinux | None = None) -> BoxReply:
    """A Linux box is a pocket phone as well: another type and configuration, the same screen and shell."""
    return await _create(fleet, request, "linux", body or bodies.CreateLinux(), None)


async def _create(
    fleet: Fleet,
    request: Request,
    kind: BoxType,
    body: bodies.CreateAndroid | bodies.CreateLinux,
    device_type: Literal["virtual", "physical"] | None,
) -> BoxReply:
    start_s = fleet.create_seconds() + getattr(request.state, EXTRA_CREATE_S, 0.0)
    box = fleet.open(
        kind,
        device_type=device_type,
        labels=body.config.labels,
        envs=body.config.envs,
        expires_in_s=body.config.expires_in,
        start_s=start_s,
        timeout_s=body.timeout,
    )
    if body.wait and start_s > 0:
        await asyncio.sleep(min(start_s, body.timeout))
        if start_s > body.timeout:
            fleet.give_up(box)
            raise ApiError(408, f"the box did not run within {body.timeout:g} s and was deleted")
        fleet.started(box)
    return reply_of(box)


@dataclass(frozen=True)
class Query:
    """What a list asks for. `statuses` and `types` empty: any."""

    labels: dict[str, str]
    statuses: frozenset[str]
    types: frozenset[str]
    device_type: str | None
    page: int
    page_size: int

    def matches(self, box: Box) -> bool:
        """Whether a box is among those asked for."""
        return (
            (not self.statuses or box.status in self.statuses)
            and (not self.types or box.type in self.types)
            and self.device_type in (None, box.device_type)
            and self.labels.items() <= box.labels.items()
        )


async def the_query(request: Request) -> Query:
    """The query string as the SDK writes it: lists joined by commas, labels as `labels[key]=value`."""
    given = dict(request.query_params)
    labels = {match[1]: given.pop(key) for key in list(given) if (match := _LABEL.fullmatch(key))}
    statuses = _words("status", given.pop("status", "pending,running,error"), get_args(Status))
    types = _words("type", given.pop("type", "all"), get_args(BoxType))
    device_type = given.pop("deviceType", None)
    if device_type is not None and device_type not in _DEVICE_TYPES:
        raise ApiError(400, f"deviceType: {device_type[:40]!r} is not one of {', '.join(_DEVICE_TYPES)}")
    page = _whole("page", given.pop("page", "1"), 10**9)
    page_size = _whole("pageSize", given.pop("pageSize", "10"), _MAX_PAGE_SIZE)
    if given:
        raise ApiError(400, f"{next(iter(given))[:40]!r} is not a query parameter of this endpoint")
    return Query(labels, statuses, types, device_type, page, page_size)


def _words(key: str, given: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """The words of a comma-separated list; none when it says "all"."""
    words = frozenset(given.split(","))
    if unknown := words - {*allowed, "all"}:
        raise ApiError(400, f"{key}: {min(unknown)[:40]!r} is not one of {', '.join(allowed)}, all")
    return frozenset() if "all" in words else words


def _whole(key: str, given: str, most: int) -> int:
    if not (given.isascii() and given.isdecimal() and 1 <= int(given) <= most):
        raise ApiError(400, f"{key}: {given[:20]!r} is not a whole number from 1 to {most}")
    return int(given)


@router.get("/boxes", response_model_exclude_none=True)
async def list_boxes(fleet: TheFleet, query: Annotated[Query, Depends(the_query)]) -> BoxList:
    """Oldest first; terminated boxes only when `status` asks for them."""
    found = [box for box in fleet.boxes() if query.matches(box)]
    start = (query.page - 1) * query.page_size
    data = [reply_of(box) for box in found[start : start + query.page_size]]
    return BoxList(data=data, page=query.page, page_size=query.page_size, total=len(found))


@router.get("/boxes/{box_id}", response_model_exclude_none=True)
async def get_box(box_id: str, fleet: TheFleet) -> BoxReply:
    """One box, also one that has ended."""
    return reply_of(fleet.get(box_id))


@router.post("/boxes/{box_id}/terminate")
async def terminate(box_id: str, fleet: TheFleet, body: bodies.Terminate | None = None) -> Response:  # noqa: ARG001
    """Ends at once, so that there is nothing to wait for; a box that has ended is left as it is."""
    fleet.terminate(fleet.get(box_id))
    return Response(status_code=200)


@router.get("/boxes/{box_id}/display")
async def display(box_id: str, fleet: TheFleet) -> Display:
    """The real screen, whatever the scale of the settings."""
    width, height = fleet.running(box_id).phone.size
    return Display(resolution=Resolution(width=width, height=height))


@router.get("/boxes/{box_id}/actions/settings")
async def get_settings(box_id: str, fleet: TheFleet) -> SettingsReply:
    """The scale of screenshots."""
    return SettingsReply(scale=fleet.running(box_id).phone.view_scale)


@router.put("/boxes/{box_id}/actions/settings")
async def put_settings(box_id: str, fleet: TheFleet, body: bodies.Settings) -> SettingsReply:
    """Scale the screenshots that follow."""
    fleet.running(box_id).phone.view_scale = body.scale
    return SettingsReply(scale=body.scale)


@router.delete("/boxes/{box_id}/actions/settings")
async def reset_settings(box_id: str, fleet: TheFleet) -> SettingsReply:
    """Screenshots in the screen's own size again."""
    fleet.running(box_id).phone.view_scale = 1.0
    return SettingsReply(scale=1.0)


@router.post("/boxes/{box_id}/commands")
async def run_command(box_id: str, fleet: TheFleet, request: Request, body: bodies.Command) -> CommandReply:
    """Run a shell command on the box."""
    async with turn_on(fleet, box_id) as box:
        result = await shell.run(box.phone, body.command, body.timeout)
        record(fleet, request, box, COMMAND, body)
    return CommandReply(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)
