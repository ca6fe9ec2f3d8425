"""The lives of boxes: start, latency, quota, expiry, the ledger; on a clock that the test moves."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from gbox_sdk import APIStatusError, ConflictError, RateLimitError
from local_gbox_rig import sdk

from cua_agent.envs.local_gbox.errors import ApiError
from cua_agent.envs.local_gbox.faults import FaultKind
from cua_agent.envs.local_gbox.fleet import Box, Fleet
from cua_agent.envs.local_gbox.ledger import Ledger
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import running
from cua_agent.envs.pocket.latency import Latency

START = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def fleet(**options: Any) -> tuple[Fleet, Clock]:
    clock = Clock()
    return Fleet(LocalGBoxOptions(**options), clock), clock


def opened(boxes: Fleet, expires_in_s: float = 60.0, start_s: float = 0.0, timeout_s: float = 30.0) -> Box:
    return boxes.open(
        "android",
        device_type="virtual",
        labels={},
        envs={},
        expires_in_s=expires_in_s,
        start_s=start_s,
        timeout_s=timeout_s,
    )


def test_a_box_expires() -> None:
    boxes, clock = fleet()
    box = opened(boxes, expires_in_s=60)
    clock.now += 59.9
    assert boxes.running(box.id).status == "running"
    clock.now += 40
    with pytest.raises(ApiError, match="terminated: expired") as raised:
        boxes.running(box.id)
    assert raised.value.status == 409
    entry = boxes.ledger.boxes[box.id]
    assert (entry.ended, entry.ended_at) == ("expired", START + 60)  # when it was due, not when it was noticed


def test_a_box_starts() -> None:
    boxes, clock = fleet()
    box = opened(boxes, start_s=10)
    with pytest.raises(ApiError, match="is pending"):
        boxes.running(box.id)
    clock.now += 10
    assert boxes.running(box.id).updated_at == START + 10


def test_a_box_that_does_not_start_in_time_is_deleted() -> None:
    boxes, clock = fleet(quota=1)
    box = opened(boxes, start_s=31, timeout_s=30)
    clock.now += 29
    assert boxes.get(box.id).status == "pending"
    clock.now += 1
    with pytest.raises(ApiError) as raised:
        boxes.get(box.id)
    assert raised.value.status == 404
    assert list(boxes.boxes()) == []
    opened(boxes)  # it does not count towards the quota
    assert boxes.report()["summary"]["ended"] == {"create timed out": 1}  # type: ignore[index]


def test_quota_is_freed_by_every_ending() -> None:
    boxes, clock = fleet(quota=2, retry_after_s=9)
    first, second = opened(boxes, expires_in_s=1000), opened(boxes, expires_in_s=50)
    with pytest.raises(ApiError, match="quota: 2 of 2 boxes are in use") as raised:
        opened(boxes)
    assert (raised.value.status, raised.value.headers) == (429, {"Retry-After": "9"})
    boxes.terminate(first)
    third = opened(boxes, expires_in_s=1000)
    assert boxes.kill(third, 409)
    assert not boxes.kill(third, 404)  # it is dead already
    clock.now += 50
    opened(boxes)
    opened(boxes)
    assert [boxes.ledger.boxes[box.id].ended for box in (first, second, third)] == ["terminated", "expired", "died"]


def test_the_first_ending_counts() -> None:
    boxes, clock = fleet()
    box = opened(boxes, expires_in_s=50)
    clock.now += 50
    boxes.terminate(boxes.get(box.id))
    assert boxes.ledger.boxes[box.id].ended == "expired"


def test_ids_follow_the_seed() -> None:
    ids = [[opened(boxes).id for _ in range(3)] for boxes, _ in (fleet(seed=1), fleet(seed=1), fleet(seed=2))]
    assert ids[0] == ids[1] and not set(ids[0]) & set(ids[2])
    assert len(set(ids[0])) == 3


def test_sent_twice() -> None:
    ledger = Ledger()

    def execute(box: str, action: str, x: int, lost: str | None = None, retry: int = 0) -> None:
        ledger.executed(box, action, {"x": x}, retry).lost = lost

    execute("a", "tap", 1, lost=FaultKind.DROP)
    execute("b", "tap", 1)  # another box
    execute("a", "tap", 2)  # another action
    execute("a", "tap", 2)  # again, but the first was answered: an agent may tap twice
    execute("a", "tap", 2, lost=FaultKind.TIMEOUT)
    execute("a", "command", 0)  # the episode was given up and the phone reset
    execute("a", "tap", 2, lost=FaultKind.TRUNCATED_IMAGE)
    assert ledger.sent_twice() == []
    execute("a", "tap", 2, lost=FaultKind.SERVER_ERROR)  # 7: repeats an action whose picture was broken
    ledger.looked("a")
    execute("a", "tap", 2)  # the client looked first, and then decided so
    ledger.looked("nobody")
    assert [entry.sequence for entry in ledger.sent_twice()] == [7]


def test_expiry_over_http() -> None:
    clock = Clock()
    with running(clock=clock) as server, sdk(server) as client:
        box = client(lambda c: c.v1.boxes.create_android(config={"expires_in": "90s"}))
        clock.now += 89
        client.act(box.id, "tap", x=1, y=1)
        link = client.act(box.id, "screenshot", output_format="storageKey", presigned_expires_in="5s").presigned_url
        assert httpx.get(link).status_code == 200
        clock.now += 5
        assert httpx.get(link).status_code == 404
        assert server.ledger()["summary"]["running"] == []  # nobody had to ask for the box
        with pytest.raises(ConflictError, match="expired"):
            client.act(box.id, "tap", x=1, y=1)
        gone = client(lambda c: c.v1.boxes.retrieve(box.id))
        assert (gone.status, gone.reason) == ("terminated", "expired")
        client(lambda c: c.v1.boxes.terminate(box.id))
        assert server.ledger()["summary"]["ended"] == {"expired": 1}


def test_pending_over_http() -> None:
    clock = Clock()
    slow = LocalGBoxOptions(create_latency=Latency("constant", 20.0))
    with running(slow, clock) as server, sdk(server) as client:
        box = client(lambda c: c.v1.boxes.create_android(wait=False))
        late = client(lambda c: c.v1.boxes.create_android(wait=False, api_timeout="10s"))
        assert (box.status, late.status) == ("pending", "pending")
        with pytest.raises(ConflictError, match="is pending"):
            client.act(box.id, "screenshot")
        assert client(lambda c: c.v1.boxes.list(status=["pending"])).total == 2
        clock.now += 20
        assert [found.id for found in client(lambda c: c.v1.boxes.list(status=["running"])).data] == [box.id]
        client.act(box.id, "screenshot")


def test_quota_over_http() -> None:
    with running(LocalGBoxOptions(quota=1, retry_after_s=3)) as server, sdk(server) as client:
        box = client(lambda c: c.v1.boxes.create_linux())
        with pytest.raises(RateLimitError) as raised:
            client(lambda c: c.v1.boxes.create_android())
        assert raised.value.response.headers["retry-after"] == "3"
        client(lambda c: c.v1.boxes.terminate(box.id))
        client(lambda c: c.v1.boxes.create_android())


def test_create_that_takes_too_long() -> None:
    with running(LocalGBoxOptions(create_latency=Latency("constant", 60.0))) as server, sdk(server) as client:
        start = time.monotonic()
        with pytest.raises(APIStatusError, match=r"did not run within 0\.1 s and was deleted") as raised:
            client(lambda c: c.v1.boxes.create_android(api_timeout="100ms"))
        assert raised.value.status_code == 408 and time.monotonic() - start < 50
        assert server.ledger()["summary"]["ended"] == {"create timed out": 1}


def test_latency_is_that_of_the_box_and_boxes_do_not_wait_for_each_other() -> None:
    options = LocalGBoxOptions(action_latency=Latency("constant", 0.2))
    with running(options) as server:

        async def play(n_boxes: int) -> float:
            headers = {"Authorization": f"Bearer {server.api_key}"}
            async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as http:
                boxes = [(await http.post("boxes/android", json={})).json()["id"] for _ in range(n_boxes)]
                start = time.monotonic()
                # Two actions on each box: they queue on the box, and only there.
                calls = [http.post(f"boxes/{box}/actions/tap", json={"x": 1, "y": 1}) for box in boxes * 2]
                for answer in await asyncio.gather(*calls):
                    answer.raise_for_status()
                return time.monotonic() - start

        assert 0.4 <= asyncio.run(play(8)) < 1.6  # one after the other: 3.2 s


def test_lognormal_latency_follows_the_seed() -> None:
    def times(seed: int) -> list[float]:
        boxes, _ = fleet(seed=seed, action_latency=Latency("lognormal", 1.0))
        return [box.latency.sample() for box in (opened(boxes), opened(boxes)) for _ in range(3)]

    assert times(1) == times(1) != times(2)
    assert len(set(times(1))) == 6  # two boxes, two sequences


def test_a_client_that_hung_up_is_in_the_ledger() -> None:
    """The action takes effect although the client has given up: the ledger knows that it saw no answer."""
    with running(LocalGBoxOptions(action_latency=Latency("constant", 0.4))) as server:
        with sdk(server) as patient:
            box = patient(lambda c: c.v1.boxes.create_android()).id
        with sdk(server, timeout=0.1) as hasty, pytest.raises(Exception, match="timed out"):
            hasty.act(box, "tap", x=1, y=1)
        deadline = time.monotonic() + 5
        while not (lost := [entry["lost"] for entry in server.ledger()["actions"] if entry["lost"]]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert lost == ["client_gone"]
