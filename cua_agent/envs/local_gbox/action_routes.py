"""Endpoints that look at a box's screen and act on it, and the service that finds what is on a screenshot."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import get_args

from fastapi import APIRouter, Request
from PIL import Image

from cua_agent.envs.local_gbox import bodies
from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.fleet import Fleet
from cua_agent.envs.local_gbox.gestures import actions_of, places_of
from cua_agent.envs.local_gbox.images import Targets, scrolled_capture, with_trace
from cua_agent.envs.local_gbox.phone import Phone
from cua_agent.envs.local_gbox.replies import (
    ActionReply,
    DragReply,
    Grounded,
    GroundReply,
    Picture,
    Pictures,
    SpotReply,
)
from cua_agent.envs.local_gbox.serving import TheFleet, record, turn_on
from cua_agent.image_bytes import image_uri, png_bytes

router = APIRouter()
ACTIONS = "/boxes/{box_id}/actions"
_NOWHERE = SpotReply(x=-1, y=-1)


@dataclass(frozen=True)
class Camera:
    """Takes a box's screenshots the way a request wants them: inside the answer, or as links valid for `link_s`."""

    fleet: Fleet
    request: Request
    output_format: bodies.OutputFormat
    link_s: float

    def take(self, phone: Phone) -> Image.Image:
        """The screen now; the grounder will know it again."""
        image = phone.screenshot()
        self.fleet.gallery.remember(image, phone.targets())
        return image

    def picture(self, image: Image.Image) -> Picture:
        """The image in the output format that was asked for."""
        png = png_bytes(image)
        if self.output_format == "base64":
            return Picture(uri=image_uri(png))
        key = self.fleet.gallery.store(png, self.fleet.clock() + self.link_s)
        return Picture(uri=key, presigned_url=f"{self.request.base_url}storage/{key}")


@dataclass(frozen=True)
class Wanted:
    """The screenshots that an action returns. `blank`: an object with empty links, the API's default."""

    phases: frozenset[bodies.Phase]
    delay_s: float
    output_format: bodies.OutputFormat
    link_s: float
    blank: bool


def wanted_of(body: bodies.ActionBody) -> Wanted:
    """From a request's options, or from its deprecated fields when the options say nothing of screenshots."""
    asked = body.options.screenshot
    if isinstance(asked, bodies.ScreenshotOptions):
        phases = frozenset(asked.phases)
        return Wanted(phases, asked.delay, asked.output_format, asked.presigned_expires_in, blank=False)
    every = frozenset[bodies.Phase](get_args(bodies.Phase))
    if asked is not None:
        return Wanted(every if asked else frozenset(), 0.0, "base64", 0.0, blank=False)
    phases = every if body.include_screenshot else frozenset()
    return Wanted(phases, body.screenshot_delay, body.output_format, body.presigned_expires_in, blank=not phases)


async def _act(name: str, box_id: str, body: bodies.ActionBody, fleet: Fleet, request: Request) -> ActionReply:
    """Execute an action. One that the screen has no use for is executed as well; the message says so."""
    wanted = wanted_of(body)
    camera = Camera(fleet, request, wanted.output_format, wanted.link_s)
    shots: dict[bodies.Phase, Image.Image] = {}
    async with turn_on(fleet, box_id) as box:
        actions = actions_of(body, box.phone)
        if wanted.phases & {"before", "trace"}:
            shots["before"] = camera.take(box.phone)
            shots["trace"] = with_trace(shots["before"], places_of(actions))
        notes = [note for note in map(box.phone.apply, actions) if note]
        record(fleet, request, box, name, body)
        await asyncio.sleep(wanted.delay_s)
        if "after" in wanted.phases:
            shots["after"] = camera.take(box.phone)
    pictures = {phase: camera.picture(image) for phase, image in shots.items() if phase in wanted.phases}
    if wanted.blank:
        pictures = dict.fromkeys(get_args(bodies.Phase), Picture(uri=""))
    message = f"{name} executed" + (f": {', '.join(notes)}" if notes else "")
    return ActionReply(
        action_id=str(uuid.uuid4()), message=message, screenshot=Pictures(**pictures) if pictures else None
    )


@router.post(f"{ACTIONS}/click", response_model_exclude_none=True)
async def click(box_id: str, body: bodies.Click, fleet: TheFleet, request: Request) -> ActionReply:
    """Click with the mouse; on a phone, a tap."""
    return await _act("click", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/tap", response_model_exclude_none=True)
async def tap(box_id: str, body: bodies.Tap, fleet: TheFleet, request: Request) -> ActionReply:
    """Tap on the screen."""
    return await _act("tap", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/move", response_model_exclude_none=True)
async def move(box_id: str, body: bodies.Move, fleet: TheFleet, request: Request) -> ActionReply:
    """Move the mouse."""
    return await _act("move", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/long-press", response_model_exclude_none=True)
async def long_press(box_id: str, body: bodies.LongPress, fleet: TheFleet, request: Request) -> ActionReply:
    """Press and hold."""
    return await _act("long-press", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/type", response_model_exclude_none=True)
async def type_text(box_id: str, body: bodies.Type, fleet: TheFleet, request: Request) -> ActionReply:
    """Type text."""
    return await _act("type", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/swipe", response_model_exclude_none=True)
async def swipe(box_id: str, body: bodies.Swipe, fleet: TheFleet, request: Request) -> ActionReply:
    """Swipe over the screen."""
    return await _act("swipe", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/drag", response_model_exclude_none=True)
async def drag(box_id: str, body: bodies.Drag, fleet: TheFleet, request: Request) -> ActionReply:
    """Drag over the screen."""
    return await _act("drag", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/scroll", response_model_exclude_none=True)
async def scroll(box_id: str, body: bodies.Scroll, fleet: TheFleet, request: Request) -> ActionReply:
    """Scroll what is on the screen."""
    return await _act("scroll", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/press-key", response_model_exclude_none=True)
async def press_key(box_id: str, body: bodies.PressKey, fleet: TheFleet, request: Request) -> ActionReply:
    """Press keys."""
    return await _act("press-key", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/press-button", response_model_exclude_none=True)
async def press_button(box_id: str, body: bodies.PressButton, fleet: TheFleet, request: Request) -> ActionReply:
    """Press buttons of the device."""
    return await _act("press-button", box_id, body, fleet, request)


@router.post(f"{ACTIONS}/screenshot", response_model_exclude_none=True)
async def screenshot(box_id: str, body: bodies.Screenshot, fleet: TheFleet, request: Request) -> Picture:
    """`saveToAlbum` is accepted; the phone has no album."""
    camera = Camera(fleet, request, body.output_format, body.presigned_expires_in)
    async with turn_on(fleet, box_id) as box:
        image = camera.take(box.phone)
        if body.scroll_capture:
            image = scrolled_capture(box.phone, body.scroll_capture.max_height, body.scroll_capture.scroll_back)
    return camera.picture(_clipped(image, body.clip) if body.clip else image)


def _clipped(image: Image.Image, clip: bodies.Clip) -> Image.Image:
    """The part of the picture that the clip covers. Raises `ApiError` (400) when it covers none."""
    x0, y0 = int(clip.x), int(clip.y)
    x1, y1 = min(image.width, round(clip.x + clip.width)), min(image.height, round(clip.y + clip.height))
    if x1 <= x0 or y1 <= y0:
        raise ApiError(400, f"the clip lies outside the screenshot of {image.width} x {image.height} pixels")
    return image.crop((x0, y0, x1, y1))


@router.post("/model", response_model_exclude_none=True)
async def ground(body: bodies.Ground, fleet: TheFleet) -> GroundReply:
    """Where the named element is on a screenshot of this server, by pocket's own grounder; (-1, -1): nowhere."""
    image = fleet.gallery.decode(body.screenshot, fleet.clock())
    if image is None:
        raise ApiError(400, "screenshot: neither base64 of a picture nor a storage key that is still valid")
    targets = fleet.gallery.targets_on(image)
    if targets is None:
        raise ApiError(400, "screenshot: not taken by this server; send it whole, at its size, without loss")
    return GroundReply(id=str(uuid.uuid4()), response=_grounded(body.action, targets))


def _grounded(action: bodies.GroundClick | bodies.GroundDrag | bodies.GroundScroll, targets: Targets) -> Grounded:
    match action:
        case bodies.GroundClick():
            return Grounded(type="click", coordinates=_spot(action.target, targets))
        case bodies.GroundDrag():
            ends = DragReply(start=_spot(action.target, targets), end=_spot(action.destination, targets))
            return Grounded(type="drag", coordinates=ends)
        case bodies.GroundScroll():
            spot = _spot(action.location, targets)
            return Grounded(type="scroll", coordinates=spot, direction=action.direction)


def _spot(name: str, targets: Targets) -> SpotReply:
    pixel = targets.get(name.strip().casefold())
    return SpotReply(x=pixel[0], y=pixel[1]) if pixel else _NOWHERE
