"""The official SDK's clients against the local GBox, over HTTP."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from gbox_sdk import GboxClient
from PIL import Image

from cua_agent.envs.local_gbox.server import LocalGBox, running


@pytest.fixture(scope="module")
def gbox() -> Iterator[LocalGBox]:
    with running() as server:
        yield server


@pytest.fixture
def client(gbox: LocalGBox) -> Iterator[GboxClient]:
    with GboxClient(api_key=gbox.api_key, base_url=gbox.base_url) as client:
        yield client


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))).convert("RGB")


def test_an_episode(client: GboxClient) -> None:
    box = client.v1.boxes.create_android(config={"labels": {"run": "a"}, "expires_in": "5m"}, api_timeout="10s")
    assert box.status == "running"
    reset = client.v1.boxes.execute_commands(box.id, command="pocket reset toggle/wi-fi-on/w0 2 fixed 2")
    assert (reset.exit_code, reset.stdout) == (0, "Make sure Wi-Fi is on.\n")
    assert client.v1.boxes.display(box.id).resolution.width == 256
    shot = client.v1.boxes.actions.screenshot(box.id)
    assert decoded(shot.uri).size == (256, 448)
    ground: Any = client.post(
        "/model",
        cast_to=dict[str, Any],
        body={"model": "gbox-handy-1", "screenshot": shot.uri, "action": {"type": "click", "target": "Home"}},
    )
    assert ground["response"] == {"type": "click", "coordinates": {"x": 129, "y": 417}}
    tapped = client.v1.boxes.actions.tap(
        box.id, **ground["response"]["coordinates"], options={"screenshot": {"phases": ["after"]}}
    )
    assert tapped.screenshot and tapped.screenshot.after and not tapped.screenshot.before
    assert decoded(tapped.screenshot.after.uri).tobytes() != decoded(shot.uri).tobytes()
    focus = client.v1.boxes.execute_commands(box.id, command="dumpsys window | grep mCurrentFocus")
    assert "nexuslauncher" in focus.stdout
    client.v1.boxes.terminate(box.id)
    assert client.v1.boxes.retrieve(box.id).status == "terminated"
