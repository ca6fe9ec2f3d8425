"""Conformance: the life of boxes, the shell and grounding through the official SDK's sync and async clients.

`test_local_gbox_actions` has the rest of the endpoints.
"""

import base64
import io
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from gbox_sdk import AuthenticationError, BadRequestError, ConflictError, NotFoundError
from gbox_sdk.types.v1.android_box import AndroidBox
from gbox_sdk.types.v1.linux_box import LinuxBox
from gbox_sdk.wrapper import GboxSDK
from local_gbox_rig import AIRPLANE, HOME, SETTINGS, Sdk, decoded, sdk
from PIL import Image

from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.state import make_state


@pytest.fixture(scope="module")
def server() -> Iterator[LocalGBox]:
    with running() as server:
        yield server


@pytest.fixture(scope="module", params=["sync", "async"])
def client(server: LocalGBox, request: pytest.FixtureRequest) -> Iterator[Sdk]:
    with sdk(server, request.param) as client:
        yield client


@pytest.fixture
def box(client: Sdk) -> Iterator[str]:
    made = client(lambda c: c.v1.boxes.create_android(config={"labels": {"of": "test"}, "expires_in": "10m"}))
    yield made.id
    client(lambda c: c.v1.boxes.terminate(made.id))


def test_create_android(client: Sdk) -> None:
    config: Any = {"labels": {"run": "a"}, "envs": {"A": "1"}, "expires_in": "15m", "device_type": "physical"}
    box = client(lambda c: c.v1.boxes.create_android(config=config, api_timeout="10s", wait=True))
    assert isinstance(box, AndroidBox)
    assert (box.type, box.status) == ("android", "running")
    assert (box.config.labels, box.config.envs, box.config.device_type) == ({"run": "a"}, {"A": "1"}, "physical")
    assert box.expires_at - box.created_at == timedelta(minutes=15)
    client(lambda c: c.v1.boxes.terminate(box.id))


def test_create_linux(client: Sdk) -> None:
    box = client(lambda c: c.v1.boxes.create_linux(config={"labels": {"run": "b"}}))
    assert isinstance(box, LinuxBox)
    assert (box.type, box.status, box.config.labels) == ("linux", "running", {"run": "b"})
    assert box.expires_at and box.expires_at - box.created_at == timedelta(minutes=60)
    assert client.screen(box.id).size == (128, 224)
    client(lambda c: c.v1.boxes.terminate(box.id))


def test_create_without_any_wish(client: Sdk) -> None:
    box = client(lambda c: c.v1.boxes.create_android())
    assert (box.status, box.config.labels, box.config.device_type) == ("running", {}, "virtual")
    client(lambda c: c.v1.boxes.terminate(box.id))


def test_get(client: Sdk, box: str) -> None:
    assert client(lambda c: c.v1.boxes.retrieve(box)).id == box
    with pytest.raises(NotFoundError, match="box nobody was not found"):
        client(lambda c: c.v1.boxes.retrieve("nobody"))


def test_terminate(client: Sdk) -> None:
    box = client(lambda c: c.v1.boxes.create_android()).id
    assert client(lambda c: c.v1.boxes.terminate(box, wait=True)) is None
    assert client(lambda c: c.v1.boxes.retrieve(box)).status == "terminated"
    with pytest.raises(ConflictError, match="terminated"):
        client.act(box, "tap", x=1, y=1)
    client(lambda c: c.v1.boxes.terminate(box))  # again: no harm


def test_list_filters(client: Sdk) -> None:
    def make(kind: str, **config: Any) -> str:
        return str(client(lambda c: getattr(c.v1.boxes, f"create_{kind}")(config=config)).id)

    def listed(**query: Any) -> list[str]:
        return [box.id for box in client(lambda c: c.v1.boxes.list(page_size=100, **query)).data]

    mark = {"mark": f"list [a]=b, c&d {uuid.uuid4()}"}  # with what a query string could garble
    a = make("android", labels={**mark, "n": "1"})
    b = make("android", labels={**mark, "n": "2"}, device_type="physical")
    c = make("linux", labels=mark)
    client(lambda client: client.v1.boxes.terminate(b))
    assert listed(labels=mark) == [a, c]
    assert listed(labels=mark, status=["all"]) == [a, b, c]
    assert listed(labels=mark, status=["terminated"]) == [b]
    assert listed(labels=mark, status=["pending", "terminated"]) == [b]
    assert listed(labels={**mark, "n": "2"}, status=["all"]) == [b]
    assert listed(labels={"mark": "none"}) == []
    assert listed(labels=mark, type=["linux"]) == [c]
    assert listed(labels=mark, type=["android", "linux"]) == [a, c]
    assert listed(labels=mark, device_type="virtual") == [a]
    assert listed(labels=mark, status=["all"], device_type="physical") == [b]
    for box in (a, c):
        client(lambda client, box=box: client.v1.boxes.terminate(box))


def test_list_pages(client: Sdk) -> None:
    labels = {"mark": str(uuid.uuid4())}
    boxes = [client(lambda c: c.v1.boxes.create_android(config={"labels": labels})).id for _ in range(5)]
    pages = [client(lambda c, n=n: c.v1.boxes.list(labels=labels, page=n, page_size=2)) for n in (1, 2, 3, 4)]
    assert [[box.id for box in page.data] for page in pages] == [boxes[:2], boxes[2:4], boxes[4:], []]
    assert {(page.total, page.page_size) for page in pages} == {(5, 2)}
    assert [page.page for page in pages] == [1, 2, 3, 4]
    for box in boxes:
        client(lambda c, box=box: c.v1.boxes.terminate(box))


@pytest.mark.parametrize(
    "query", [{"status": ["done"]}, {"type": ["ios"]}, {"page": 0}, {"page_size": 101}, {"device_type": "cloud"}]
)
def test_list_refuses_what_it_does_not_know(client: Sdk, query: Any) -> None:
    with pytest.raises(BadRequestError):
        client(lambda c: c.v1.boxes.list(**query))


def test_display(client: Sdk, box: str) -> None:
    display = client(lambda c: c.v1.boxes.display(box))
    assert (display.orientation, display.resolution.width, display.resolution.height) == ("portrait", 128, 224)


def test_commands(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    done = client.shell(box, f"settings get {AIRPLANE}", api_timeout="5s", working_dir="/sdcard", envs={"A": "1"})
    assert (done.exit_code, done.stdout, done.stderr) == (0, "1\n", "")
    unknown = client.shell(box, "reboot now")
    assert (unknown.exit_code, unknown.stdout) == (127, "")
    assert unknown.stderr == "/system/bin/sh: reboot: inaccessible or not found\n"
    assert client.shell(box, "sleep 5", api_timeout="20ms").exit_code == 124
    assert client.shell(box, "echo 'open").exit_code == 2


def test_reset_command(client: Sdk, box: str) -> None:
    goal = client.shell(box, "pocket reset brightness/50/w0 3 themed 2")
    assert (goal.exit_code, goal.stdout) == (0, "Set the brightness to 50%.\n")
    assert client.screen(box).tobytes() == draw(make_state(3, "themed"), 2).tobytes()
    client.shell(box, "pocket reset brightness/50/w0 4")  # layout and scale stay
    assert client.screen(box).tobytes() == draw(make_state(4, "themed"), 2).tobytes()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("pocket", "what to do is not clear"),
        ("pocket reset toggle/wi-fi-on/w0", "what to do is not clear"),
        ("pocket reset nothing 3", "task 'nothing' is unknown"),
        ("pocket reset toggle/wi-fi-on/w0 -3", "seed '-3' is not a whole number"),
        ("pocket reset toggle/wi-fi-on/w0 3 round", "layout 'round' is not one of fixed, themed, shuffled"),
        ("pocket reset toggle/wi-fi-on/w0 3 fixed 9", "scale '9' is not 1..8"),
    ],
)
def test_reset_command_refused(client: Sdk, box: str, command: str, error: str) -> None:
    client.reset(box, HOME)
    before = client.screen(box)
    done = client.shell(box, command)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith(f"pocket: {error}\nusage: pocket reset <task id> <seed>")
    assert client.screen(box).tobytes() == before.tobytes()


def test_grounding(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS, scale=2)
    uri = client.act(box, "screenshot").uri
    airplane = client.ground(uri, type="click", target=" airplane mode ")
    assert client.ground(uri, type="click", target="Pay") == {"type": "click", "coordinates": {"x": -1, "y": -1}}
    bluetooth = client.ground(uri, type="click", target="Do not disturb")["coordinates"]
    drag = client.ground(uri, type="drag", target="Airplane mode", destination="Do not disturb")
    assert drag == {"type": "drag", "coordinates": {"start": airplane["coordinates"], "end": bluetooth}}
    scroll = client.ground(uri, type="scroll", location="Airplane mode", direction="up")
    assert scroll == {"type": "scroll", "coordinates": airplane["coordinates"], "direction": "up"}
    client.act(box, "press_button", buttons=["home"])  # the old picture still shows what it showed
    assert client.ground(uri, type="click", target="Airplane mode") == airplane
    link = client.act(box, "screenshot", output_format="storageKey")
    home = client.ground(link.presigned_url, type="click", target="Settings")
    assert home == client.ground(link.uri, type="click", target="Settings") != airplane


def test_grounding_takes_a_picture_that_was_saved_again(client: Sdk, box: str) -> None:
    client.reset(box, SETTINGS)
    uri = client.act(box, "screenshot").uri
    buffer = io.BytesIO()
    decoded(uri).save(buffer, "PNG", optimize=True)
    again = base64.b64encode(buffer.getvalue()).decode()
    assert client.ground(again, type="click", target="Airplane mode") == client.ground(
        uri, type="click", target="Airplane mode"
    )
    with pytest.raises(BadRequestError, match="not taken by this server"):
        flipped = io.BytesIO()
        decoded(uri).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(flipped, "PNG")
        client.ground(base64.b64encode(flipped.getvalue()).decode(), type="click", target="Airplane mode")
    with pytest.raises(BadRequestError, match="neither base64 of a picture"):
        client.ground("aGVsbG8=", type="click", target="Airplane mode")


def test_wrong_key(server: LocalGBox) -> None:
    with sdk(server, api_key="wrong") as stranger, pytest.raises(AuthenticationError, match="API key"):
        stranger(lambda c: c.v1.boxes.list())


def test_the_sdks_own_wrapper(server: LocalGBox) -> None:
    wrapper = GboxSDK(api_key=server.api_key, base_url=server.base_url)
    box = wrapper.create(type="android", config={"labels": {"by": "wrapper"}})
    assert box.command("pocket reset toggle/wi-fi-on/w0 17 fixed").stdout == "Make sure Wi-Fi is on.\n"
    box.action.click(target="Airplane mode")
    assert box.command(f"settings get {AIRPLANE}").stdout == "0\n"
    assert decoded(box.action.screenshot().uri).size == (128, 224)
    assert box.display().resolution.height == 224
    assert [found.data.id for found in wrapper.list(labels={"by": "wrapper"}).operators] == [box.data.id]
    wrapper.terminate(box.data.id)
    assert wrapper.get_info(box.data.id).status == "terminated"
