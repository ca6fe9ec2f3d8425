"""One box, and what can be asked of it: each call with its deadline, and repeated only where that is harmless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gbox_sdk import AsyncGboxClient

from cua_agent.actions import Point
from cua_agent.envs.base import EnvironmentFailure
from cua_agent.envs.gbox.calls import CallRefused, Patience, UnusableReply, call, did_nothing, may_pass
from cua_agent.envs.gbox.gestures import Gesture, milliseconds
from cua_agent.envs.gbox.screens import Screen, decode_screen
from cua_agent.envs.gbox.service import end_box
from cua_agent.envs.gbox.settings import GBoxSettings

GROUNDING_MODEL = "gbox-handy-1"
_MARGIN_S = 5.0
"""How much longer a call waits than the service was told to take, so that it is the service that gives up first."""
_TIMED_OUT = 124
_SHOWN = 60
"""How much of a command an error repeats, in characters."""


@dataclass(frozen=True)
class Output:
    """What a shell command printed, and how it ended."""

    stdout: str
    stderr: str
    exit_code: int


class Box:
    """One running box; one call at a time. Calls raise `EnvironmentFailure` when the box or the way to it is broken."""

    def __init__(self, client: AsyncGboxClient, box_id: str, settings: GBoxSettings) -> None:
        self.id = box_id
        self._client = client
        self._settings = settings
        self._patience = Patience(settings.call_timeout_s, settings.attempts)
        self._last_answer = ""  # id of the action that the last answer was about
        self._behind = False

    async def screenshot(self) -> Screen:
        """What the screen shows now."""

        async def make() -> Screen:
            actions = self._client.v1.boxes.actions
            reply = await actions.screenshot(self.id, output_format="base64", timeout=self._settings.call_timeout_s)
            return await decode_screen(getattr(reply, "uri", None))

        return await call("screenshot", make, self._patience, may_pass)

    async def perform(self, gesture: Gesture, *, look: bool) -> Screen | None:
        """Carry out a gesture, once, and bring the screen after it along (`look`), in one round trip.

        Raises `CallRefused` when the service did not accept it.
        """
        phases = ["after"] if look else []
        delay = milliseconds(self._settings.screenshot_delay_s)
        options = {"screenshot": {"phases": phases, "delay": delay, "output_format": "base64"}}
        method = getattr(self._client.v1.boxes.actions, gesture.method)

        async def make() -> Any:
            return await method(self.id, **gesture.arguments, options=options, timeout=self._settings.call_timeout_s)

        reply = await call(gesture.method, make, self._patience, did_nothing)
        return await self._screen_of(reply) if look else None

    async def _screen_of(self, reply: Any) -> Screen:
        """The screen after an action that was carried out, whatever its answer is worth."""
        action_id = getattr(reply, "action_id", "")
        # One answer that came twice: the id of the action that it hid is unknown, so that later ones cannot be told.
        self._behind = self._behind or action_id == self._last_answer
        self._last_answer = action_id
        try:
            if not self._behind:
                return await decode_screen(reply.screenshot.after.uri)
        except (UnusableReply, AttributeError):
            pass
        return await self.screenshot()

    async def run(self, command: str, *, only_reads: bool) -> Output:
        """Run a shell command; one that `only_reads` is run again when its answer was lost."""
        timeout_s = self._settings.command_timeout_s

        async def make() -> Output:
            reply = await self._client.v1.boxes.execute_commands(
                self.id, command=command, api_timeout=milliseconds(timeout_s), timeout=timeout_s + _MARGIN_S
            )
            if not (hasattr(reply, "exit_code") and isinstance(reply.stdout, str)):
                raise UnusableReply("an answer without an exit code")
            return Output(reply.stdout, reply.stderr, int(reply.exit_code))

        what = f"command {command[:_SHOWN]!r}"
        patience = Patience(timeout_s + _MARGIN_S, self._settings.attempts)
        try:
            output = await call(what, make, patience, may_pass if only_reads else did_nothing)
        except CallRefused as error:
            raise EnvironmentFailure(f"{what} was refused: {error}") from error
        if output.exit_code == _TIMED_OUT:
            raise EnvironmentFailure(f"{what} took longer than {timeout_s:g} s")
        return output

    async def set_scale(self, scale: float) -> None:
        """Shrink screenshots, and coordinates with them."""

        async def make() -> None:
            await self._client.v1.boxes.actions.settings_update(
                self.id, scale=scale, timeout=self._settings.call_timeout_s
            )

        await call("settings", make, self._patience, may_pass)

    async def is_running(self) -> bool:
        """Whether the service says that the box runs; False when it does not answer."""

        async def make() -> str:
            return str((await self._client.v1.boxes.retrieve(self.id, timeout=self._settings.call_timeout_s)).status)

        try:
            return await call("get", make, self._patience, may_pass) == "running"
        except EnvironmentFailure:
            return False

    async def locate(self, target: str, screen: Screen) -> Point | None:
        """The place of the element called `target` on `screen`, as the grounding model sees it; None without one."""
        body = {"model": GROUNDING_MODEL, "screenshot": screen.uri, "action": {"type": "click", "target": target}}

        async def make() -> Point | None:
            options: Any = {"timeout": self._settings.call_timeout_s}
            reply = await self._client.post("/model", cast_to=object, body=body, options=options)
            return point_of(reply, screen.image.size)

        try:
            return await call("grounding", make, self._patience, may_pass)
        except CallRefused as error:
            raise EnvironmentFailure(f"grounding was refused: {error}") from error

    async def end(self) -> None:
        """Terminate the box."""
        await end_box(self._client, self.id, self._patience)


def point_of(reply: object, size: tuple[int, int]) -> Point | None:
    """The place in a grounding answer on a screenshot of `size` pixels; None for (-1, -1) and whatever lies outside.

    Raises `UnusableReply`.
    """
    try:
        spot = reply["response"]["coordinates"]  # type: ignore[index]
        x, y = int(spot["x"]), int(spot["y"])
    except (TypeError, KeyError, ValueError) as error:
        raise UnusableReply("an answer without coordinates") from error
    inside = 0 <= x < size[0] and 0 <= y < size[1]
    return Point.at_pixel(x, y, *size) if inside else None


async def create_box(client: AsyncGboxClient, settings: GBoxSettings, labels: Mapping[str, str]) -> Box:
    """Ask for a box and wait until it runs; the request is sent once. Raises the SDK's errors, or `UnusableReply`."""
    boxes, timeout_s = client.v1.boxes, settings.create_timeout_s
    create: Any = boxes.create_android if settings.box == "android" else boxes.create_linux
    reply = await create(
        config={"expires_in": milliseconds(settings.expires_in_s), "labels": dict(labels)},
        wait=True,
        api_timeout=milliseconds(timeout_s),
        timeout=timeout_s + _MARGIN_S,
    )
    if not isinstance(getattr(reply, "id", None), str) or reply.status != "running":
        raise UnusableReply("an answer without a running box")
    return Box(client, reply.id, settings)
