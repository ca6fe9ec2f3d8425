"""A local GBox, the SDK's two clients driven alike, and pictures as they come over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from gbox_sdk import AsyncGboxClient, GboxClient
from PIL import Image

from cua_agent.envs.local_gbox.server import LocalGBox

ClientKind = Literal["sync", "async"]
HOME, DISPLAY, SETTINGS = 1, 16, 17
"""Seeds whose phone starts on a known screen without a dialog: the last with aeroplane mode on and in view."""
AIRPLANE = "global airplane_mode_on"
LAUNCHER = "com.google.android.apps.nexuslauncher/.NexusLauncherActivity"
AFTER = {"screenshot": {"phases": ["after"]}}


class Sdk:
    """One of the official clients. Called with what to do with it, for example `lambda c: c.v1.boxes.list()`."""

    def __init__(self, call: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._call = call

    def __call__(self, use: Callable[[Any], Any]) -> Any:
        return self._call(use)

    def act(self, box: str, name: str, **arguments: Any) -> Any:
        return self(lambda client: getattr(client.v1.boxes.actions, name)(box, **arguments))

    def shell(self, box: str, command: str, **arguments: Any) -> Any:
        return self(lambda client: client.v1.boxes.execute_commands(box, command=command, **arguments))

    def setting(self, box: str, key: str) -> str:
        return str(self.shell(box, f"settings get {key}").stdout).strip()

    def focus(self, box: str) -> str:
        """The activity in front."""
        return str(self.shell(box, "dumpsys window | grep mCurrentFocus").stdout).split()[-1].rstrip("}")

    def screen(self, box: str) -> Image.Image:
        return decoded(self.act(box, "screenshot").uri)

    def reset(self, box: str, seed: int, scale: int = 1, task: str = "toggle/wi-fi-on/w0") -> str:
        """A box in the start state of a seed, with the fixed layout; returns the goal."""
        done = self.shell(box, f"pocket reset {task} {seed} fixed {scale}")
        assert done.exit_code == 0, done.stderr
        return str(done.stdout)

    def ground(self, uri: str, **action: str) -> dict[str, Any]:
        body = {"model": "gbox-handy-1", "screenshot": uri, "action": action}
        answer = self(lambda client: client.post("/model", cast_to=dict[str, Any], body=body))
        response: dict[str, Any] = answer["response"]
        return response


@contextmanager
def sdk(server: LocalGBox, kind: ClientKind = "sync", **options: Any) -> Iterator[Sdk]:
    """A client of the server that checks every answer against the SDK's own types."""
    options = {
        "api_key": server.api_key,
        "base_url": server.base_url,
        "max_retries": 0,
        "_strict_response_validation": True,
        **options,
    }
    if kind == "sync":
        with GboxClient(**options) as client:
            yield Sdk(lambda use: use(client))
        return
    with asyncio.Runner() as runner:
        async_client = AsyncGboxClient(**options)

        async def awaited(use: Callable[[Any], Any]) -> Any:
            return await use(async_client)

        yield Sdk(lambda use: runner.run(awaited(use)))
        runner.run(async_client.close())


def png_of(uri: str) -> bytes:
    assert uri.startswith("data:image/png;base64,")
    return base64.b64decode(uri.partition(",")[2], validate=True)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(png_of(uri))).convert("RGB")
