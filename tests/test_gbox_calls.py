"""When a call is made again, how long it waits, what its failure means: the SDK's client on a scripted transport."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from gbox_sdk import APIStatusError, AsyncGboxClient

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gbox.box import Box, create_box, point_of
from cua_agent.envs.gbox.calls import CallRefused, UnusableReply, retry_after_s
from cua_agent.envs.gbox.gestures import Gesture
from cua_agent.envs.gbox.settings import GBoxSettings

TAP = Gesture("tap", {"x": 1, "y": 2})
SETTINGS = GBoxSettings(api_key="k", base_url="http://box/api/v1", call_timeout_s=0.3, attempts=3)
OK = httpx.Response(200, json={"actionId": "a", "message": "tap executed"})
RUNNING = httpx.Response(200, json={"id": "b", "type": "android", "status": "running"})

Step = httpx.Response | Exception | float
"""An answer, an error of the connection, or seconds without an answer."""


class Script:
    """A transport that plays steps back and remembers what was sent; the last step repeats."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.sent: list[httpx.Request] = []
        self.times: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        step = self.steps[min(len(self.sent), len(self.steps) - 1)]
        self.sent.append(request)
        self.times.append(time.monotonic())
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
            return OK
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)


def client_on(script: Script) -> AsyncGboxClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(script), timeout=30)
    return AsyncGboxClient(api_key="k", base_url="http://box/api/v1", max_retries=0, http_client=http)


def with_box(script: Script, use: Callable[[Box], Any], settings: GBoxSettings = SETTINGS) -> Any:
    async def main() -> Any:
        async with client_on(script) as client:
            return await use(Box(client, "b", settings))

    return asyncio.run(main())


def tap(box: Box) -> Any:
    return box.perform(TAP, look=False)


def status(code: int, **headers: str) -> httpx.Response:
    return httpx.Response(code, json={"message": "no"}, headers=headers)


LOST = [
    status(500),
    status(502),
    status(503),
    status(408),
    httpx.ReadError("gone"),
    httpx.RemoteProtocolError("gone"),
    httpx.ReadTimeout("slow"),
    httpx.WriteError("gone"),
    5.0,
]
"""Failures after which nobody knows whether the call took effect."""
NOT_DONE = [status(429), httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("busy")]
"""Failures that certainly had no effect."""


@pytest.mark.parametrize("failure", LOST, ids=repr)
def test_an_action_whose_fate_is_unknown_is_never_sent_again(failure: Step) -> None:
    script = Script(failure, OK)
    with pytest.raises(EnvironmentFailure, match="tap: "):
        with_box(script, tap)
    assert len(script.sent) == 1


@pytest.mark.parametrize("failure", NOT_DONE, ids=repr)
def test_an_action_that_certainly_did_nothing_is_sent_again(failure: Step) -> None:
    script = Script(failure, OK)
    assert with_box(script, tap) is None
    assert len(script.sent) == 2


@pytest.mark.parametrize("failure", [*LOST, *NOT_DONE], ids=repr)
def test_a_question_is_asked_again(failure: Step) -> None:
    script = Script(failure, RUNNING)
    assert with_box(script, lambda box: box.is_running()) is True
    assert len(script.sent) == 2


@pytest.mark.parametrize("code", [404, 409])
def test_a_dead_box_is_given_up_at_once(code: int) -> None:
    for use in (tap, lambda box: box.run("date", only_reads=True), lambda box: box.screenshot()):
        script = Script(status(code))
        with pytest.raises(EnvironmentFailure, match=str(code)):
            with_box(script, use)
        assert len(script.sent) == 1


def test_attempts_are_counted() -> None:
    script = Script(status(500))
    with pytest.raises(EnvironmentFailure, match="command 'date': 500 no"):
        with_box(script, lambda box: box.run("date", only_reads=True))
    assert len(script.sent) == SETTINGS.attempts


@pytest.mark.parametrize("code", [400, 422])
def test_a_refusal_is_no_failure_of_the_box(code: int) -> None:
    with pytest.raises(CallRefused, match=f"{code} no"):
        with_box(Script(status(code)), tap)


@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_key_stops_everything(code: int) -> None:
    with pytest.raises(WorldUnavailable, match="refuses the key") as caught:
        with_box(Script(status(code)), tap)
    assert "\n" not in str(caught.value)


def test_the_service_is_given_the_time_it_asks_for() -> None:
    script = Script(status(429, **{"Retry-After": "0.7"}), OK)
    with_box(script, tap)
    assert script.times[1] - script.times[0] >= 0.7


def test_a_wait_beyond_all_patience_is_not_begun() -> None:
    script = Script(status(429, **{"Retry-After": "3600"}), OK)
    started = time.monotonic()
    with pytest.raises(EnvironmentFailure, match="429"):
        with_box(script, tap)
    assert (len(script.sent), time.monotonic() - started < 60) == (1, True)


def error_with(retry_after: str | None) -> APIStatusError:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    response = httpx.Response(429, headers=headers, request=httpx.Request("GET", "http://box"))
    return APIStatusError("no", response=response, body=None)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s(error_with("2")) == 2.0
    assert retry_after_s(error_with("1.5")) == 1.5
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 <= retry_after_s(error_with(soon)) <= 30
    assert [retry_after_s(error) for error in (error_with(None), error_with("soon"), ValueError(), None)] == [0.0] * 4


def test_the_deadline_holds_against_a_server_that_never_ends_its_answer() -> None:
    async def drip() -> Any:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    class Dripping(Script):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            self.sent.append(request)
            return httpx.Response(200, content=drip())

    started = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"no answer within 0.3 s"):
        with_box(Dripping(OK), tap)
    assert time.monotonic() - started < 60


def test_a_creation_is_posted_once_and_waits_longer_than_the_service() -> None:
    """A client that gives up when the service does, and tries again, leaks a box."""
    script = Script(status(500))

    async def main() -> None:
        async with client_on(script) as client:
            await create_box(client, SETTINGS, {"run": "r"})

    with pytest.raises(APIStatusError):
        asyncio.run(main())
    (request,) = script.sent
    assert request.url.path == "/api/v1/boxes/android"
    assert json.loads(request.content)["timeout"] == "120000ms"
    assert request.extensions["timeout"]["read"] > 120


@pytest.mark.parametrize(
    ("coordinates", "place"),
    [((0, 0), (5, 2)), ((99, 199), (995, 998)), ((-1, -1), None), ((100, 0), None), ((0, 200), None)],
)
def test_grounding_answers_are_pixels_of_the_screenshot(coordinates: Any, place: Any) -> None:
    x, y = coordinates
    point = point_of({"response": {"coordinates": {"x": x, "y": y}}}, (100, 200))
    assert (point and (point.x, point.y)) == place


@pytest.mark.parametrize("reply", [None, {}, "text", {"response": {}}, {"response": {"coordinates": {"x": "a"}}}])
def test_a_grounding_answer_without_a_place_is_unusable(reply: Any) -> None:
    with pytest.raises(UnusableReply):
        point_of(reply, (100, 200))
