"""Faults: which request fails is a pure decision by seed; how it fails is seen by the SDK over HTTP."""

import asyncio
import io
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from gbox_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncGboxClient,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)
from hypothesis import given
from hypothesis import strategies as st
from local_gbox_rig import AFTER, AIRPLANE, SETTINGS, Sdk, png_of, sdk
from PIL import Image

from cua_agent.envs.local_gbox.faults import (
    ALWAYS_AFTER,
    APPLIES_TO,
    HITS_AT_EITHER_MOMENT,
    Fault,
    FaultKind,
    FaultPlan,
    Moment,
    Operation,
    ScriptedFaults,
)
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running

A = Operation.ACTION


def scripted(*faults: Fault | None, operation: Operation = A, **options: Any) -> LocalGBoxOptions:
    """The n-th request of an operation meets the n-th fault."""
    script = {(operation, number): fault for number, fault in enumerate(faults, 1) if fault}
    return LocalGBoxOptions(faults=ScriptedFaults(script), **options)


def box_on_settings(client: Sdk) -> str:
    box = str(client(lambda c: c.v1.boxes.create_android()).id)
    client.reset(box, SETTINGS)
    return box


@given(
    seed=st.integers(0, 2**32),
    stream=st.text(max_size=4),
    operation=st.sampled_from(Operation),
    number=st.integers(1, 10**6),
    kinds=st.lists(st.sampled_from(FaultKind), unique=True).map(tuple),
    moment=st.sampled_from(["before", "after", "either"]),
)
def test_decisions(
    seed: int, stream: str, operation: Operation, number: int, kinds: tuple[FaultKind, ...], moment: Moment
) -> None:
    fault = FaultPlan(1.0, kinds, moment, seed).decide(stream, operation, number)
    assert fault == FaultPlan(1.0, kinds, moment, seed).decide(stream, operation, number)
    assert FaultPlan(0.0, kinds, moment, seed).decide(stream, operation, number) is None
    possible = [kind for kind in kinds if operation in APPLIES_TO[kind]]
    if fault is None:
        assert not possible
        return
    assert fault.kind in possible
    if fault.kind in HITS_AT_EITHER_MOMENT:
        assert moment == "either" or fault.after == (moment == "after")
    else:
        assert fault.after == (fault.kind in ALWAYS_AFTER)
    if fault.kind is FaultKind.SERVER_ERROR:
        assert fault.status in (500, 502, 503, 504)
    if fault.kind is FaultKind.DEATH:
        assert fault.status in (404, 409)


def test_rate_and_mixture() -> None:
    plan = FaultPlan(0.2, seed=3)
    faults = [plan.decide(str(box), A, number) for box in range(100) for number in range(1, 101)]
    kinds = Counter(fault.kind for fault in faults if fault)
    # 10,000 requests, 7 kinds: the standard deviations are 40 (of 2000) and 17 (of 286).
    assert abs(sum(kinds.values()) - 2000) < 160
    assert set(kinds) == set(FaultKind) - {FaultKind.SLOW_CREATE}
    assert all(abs(count - 2000 / 7) < 68 for count in kinds.values())
    halves = Counter(fault.after for fault in faults if fault and fault.kind in HITS_AT_EITHER_MOMENT)
    assert abs(halves[True] - halves[False]) < 4 * sum(halves.values()) ** 0.5


def test_bad_rate() -> None:
    with pytest.raises(ValueError, match=r"rate=1.5 must be from 0 to 1"):
        FaultPlan(1.5)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(FaultKind.SERVER_ERROR, False, 503), InternalServerError),
        (Fault(FaultKind.SERVER_ERROR, True, 502), InternalServerError),
        (Fault(FaultKind.DROP, False), APIConnectionError),
        (Fault(FaultKind.DROP, True), APIConnectionError),
        (Fault(FaultKind.TIMEOUT, False), APITimeoutError),
        (Fault(FaultKind.TIMEOUT, True), APITimeoutError),
        (Fault(FaultKind.RATE_LIMIT), RateLimitError),
    ],
    ids=lambda value: f"{value.kind}-{'after' if value.after else 'before'}" if isinstance(value, Fault) else "",
)
def test_an_action_without_answer(kind: Any, fault: Fault, error: type[Exception]) -> None:
    """The client cannot tell, the shell can: the tap took effect when the fault came after it, and only then."""
    with running(scripted(fault, retry_after_s=7)) as server, sdk(server, kind) as client:
        box = box_on_settings(client)
        patience = 0.5 if fault.kind is FaultKind.TIMEOUT else 20
        with pytest.raises(error) as raised:
            client.act(box, "tap", target="Airplane mode", options=AFTER, timeout=patience)
        assert isinstance(raised.value, APITimeoutError) == (fault.kind is FaultKind.TIMEOUT)
        if isinstance(raised.value, RateLimitError):
            assert raised.value.response.headers["retry-after"] == "7"
        if isinstance(raised.value, InternalServerError):
            assert raised.value.status_code == fault.status
        assert client.setting(box, AIRPLANE) == ("0" if fault.after else "1")
        ledger = server.ledger()
        assert [entry["lost"] for entry in ledger["actions"] if entry["action"] == "tap"] == (
            [fault.kind] if fault.after else []
        )
        expected = {"kind": fault.kind, "operation": "action", "box": box, "after": fault.after}
        assert ledger["faults"] == [expected]
        client.act(box, "tap", target="Airplane mode")  # the connection recovers
        assert client.setting(box, AIRPLANE) == ("1" if fault.after else "0")


def test_a_hanging_server_answers_in_the_end() -> None:
    with running(scripted(Fault(FaultKind.TIMEOUT), hang_s=0.3)) as server, sdk(server) as client:
        box = box_on_settings(client)
        start = time.monotonic()
        with pytest.raises(InternalServerError, match="504"):
            client.act(box, "tap", x=1, y=1)
        assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_create(after: bool) -> None:
    """When it is lost after the effect, there is a box that nobody knows of: only its labels find it."""
    fault = Fault(FaultKind.DROP, after)
    with running(scripted(fault, operation=Operation.CREATE)) as server, sdk(server) as client:
        with pytest.raises(APIConnectionError):
            client(lambda c: c.v1.boxes.create_android(config={"labels": {"run": "r"}}))
        found = [box.id for box in client(lambda c: c.v1.boxes.list(labels={"run": "r"})).data]
        assert len(found) == after
        assert server.ledger()["summary"]["running"] == found


@pytest.mark.parametrize("status", [404, 409])
@pytest.mark.parametrize("operation", [Operation.ACTION, Operation.SCREENSHOT])
def test_a_box_that_dies(status: int, operation: Operation) -> None:
    fault = Fault(FaultKind.DEATH, status=status)
    with running(scripted(None, fault, operation=operation)) as server, sdk(server) as client:
        box = box_on_settings(client)

        def use() -> None:
            client.act(box, "screenshot") if operation is Operation.SCREENSHOT else client.act(box, "tap", x=1, y=1)

        use()
        for _ in range(2):
            with pytest.raises(APIStatusError) as raised:
                use()
            assert raised.value.status_code == status
        with pytest.raises(APIStatusError):
            client.shell(box, "settings get global wifi_on")
        assert server.ledger()["summary"]["ended"] == {"died": 1}
        if status == 404:
            with pytest.raises(NotFoundError):
                client(lambda c: c.v1.boxes.terminate(box))
        else:
            assert client(lambda c: c.v1.boxes.retrieve(box)).status == "error"
            client(lambda c: c.v1.boxes.terminate(box))
            assert client(lambda c: c.v1.boxes.retrieve(box)).status == "terminated"
        assert server.ledger()["summary"]["ended"] == {"died": 1}


def test_slow_create() -> None:
    slow = Fault(FaultKind.SLOW_CREATE)
    options = scripted(slow, slow, operation=Operation.CREATE, slow_create_s=0.3)
    with running(options) as server, sdk(server) as client:
        start = time.monotonic()
        box = client(lambda c: c.v1.boxes.create_android(api_timeout="1s"))
        assert box.status == "running" and time.monotonic() - start >= 0.3
        with pytest.raises(APIStatusError) as raised:
            client(lambda c: c.v1.boxes.create_android(api_timeout="100ms"))
        assert raised.value.status_code == 408
        third = client(lambda c: c.v1.boxes.create_android(api_timeout="100ms"))
        assert third.status == "running"
        ledger = server.ledger()["summary"]
        assert (ledger["ended"], ledger["running"]) == ({"create timed out": 1}, [box.id, third.id])


@pytest.mark.parametrize("operation", [Operation.ACTION, Operation.SCREENSHOT])
def test_a_truncated_image(operation: Operation) -> None:
    cut = Fault(FaultKind.TRUNCATED_IMAGE, after=True)
    with running(scripted(cut, operation=operation)) as server, sdk(server) as client:
        box = box_on_settings(client)

        def shoot() -> bytes:
            if operation is Operation.SCREENSHOT:
                return png_of(client.act(box, "screenshot").uri)
            return png_of(client.act(box, "move", x=1, y=1, options=AFTER).screenshot.after.uri)

        broken, whole = shoot(), shoot()
        assert whole.startswith(broken) and len(broken) == len(whole) // 2
        with pytest.raises(OSError):
            Image.open(io.BytesIO(broken)).load()
        Image.open(io.BytesIO(whole)).load()


def test_there_is_no_fault_where_there_is_no_image_and_no_former_answer() -> None:
    cut, repeat = Fault(FaultKind.TRUNCATED_IMAGE, after=True), Fault(FaultKind.DUPLICATE, after=True)
    with running(scripted(repeat, cut)) as server, sdk(server) as client:
        box = box_on_settings(client)
        client.act(box, "tap", x=1, y=1)
        client.act(box, "tap", x=1, y=1)
        assert server.ledger()["faults"] == []


def test_a_duplicated_reply() -> None:
    """The action takes effect, but what comes back is the answer to the one before: same id, old picture."""
    repeat = Fault(FaultKind.DUPLICATE, after=True)
    with running(scripted(None, repeat)) as server, sdk(server) as client:
        box = box_on_settings(client)
        first = client.act(box, "tap", target="Airplane mode", options=AFTER)
        second = client.act(box, "tap", target="Airplane mode", options=AFTER)
        third = client.act(box, "tap", target="Airplane mode", options=AFTER)
        assert second == first and third.action_id != first.action_id
        assert client.setting(box, AIRPLANE) == "0"  # three taps: on, off, on, off


@pytest.mark.parametrize(
    ("fault", "twice"),
    [
        (Fault(FaultKind.SERVER_ERROR, True, 500), True),
        (Fault(FaultKind.DROP, True), True),
        (Fault(FaultKind.SERVER_ERROR, False, 500), False),
        (Fault(FaultKind.DROP, False), False),
        (Fault(FaultKind.RATE_LIMIT), False),
    ],
    ids=str,
)
def test_the_ledger_convicts_a_client_that_retries_blindly(fault: Fault, twice: bool) -> None:
    with running(scripted(fault, retry_after_s=0)) as server, sdk(server, max_retries=1) as client:
        box = box_on_settings(client)
        client.act(box, "tap", target="Airplane mode")
        entries = [entry for entry in server.ledger()["actions"] if entry["action"] == "tap"]
        assert [entry["retry"] for entry in entries] == ([0, 1] if twice else [1])
        assert server.ledger()["summary"]["sent_twice"] == ([entries[1]["sequence"]] if twice else [])
        assert client.setting(box, AIRPLANE) == ("1" if twice else "0")


def test_a_client_that_looks_before_it_acts_again_is_no_convict() -> None:
    lost, cut = Fault(FaultKind.SERVER_ERROR, True), Fault(FaultKind.TRUNCATED_IMAGE, after=True)
    script = {(A, 1): lost, (A, 2): lost, (A, 3): lost, (Operation.SCREENSHOT, 2): cut}
    with running(LocalGBoxOptions(faults=ScriptedFaults(script))) as server, sdk(server) as client:
        box = box_on_settings(client)
        for _ in range(3):
            with pytest.raises(InternalServerError):
                client.act(box, "tap", x=1, y=1)
            client.act(box, "screenshot")  # the second one is broken: that is no look
        client.act(box, "tap", x=1, y=1)
        taps = [entry["sequence"] for entry in server.ledger()["actions"] if entry["action"] == "tap"]
        assert server.ledger()["summary"]["sent_twice"] == [taps[2]]


def test_the_same_seed_brings_the_same_faults() -> None:
    def outcomes(seed: int) -> list[str]:
        plan = FaultPlan(
            0.5, tuple(kind for kind in FaultKind if kind not in (FaultKind.TIMEOUT, FaultKind.SLOW_CREATE)), seed=seed
        )
        with running(LocalGBoxOptions(faults=plan)) as server, sdk(server) as client:
            seen: list[str] = []
            box = ""
            for _ in range(30):
                try:
                    if not box:
                        box = client(lambda c: c.v1.boxes.create_android()).id
                    client.act(box, "tap", x=1, y=1)
                    seen.append("ok")
                except (APIConnectionError, APIStatusError) as error:
                    seen.append(type(error).__name__)
            return seen

    assert outcomes(4) == outcomes(4) != outcomes(5)


@pytest.mark.slow
def test_many_clients_under_all_faults(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever breaks is an error of the SDK; the ledger agrees with what the clients saw, and the server is sound."""
    plan = FaultPlan(0.3, seed=7)
    options = LocalGBoxOptions(faults=plan, hang_s=0.2, slow_create_s=0.4)
    answered: list[str] = []

    async def play(client: AsyncGboxClient) -> None:
        boxes = client.v1.boxes
        for _ in range(6):
            with suppress(APIConnectionError, APIStatusError):
                box = (await boxes.create_android(config={"labels": {"run": "many"}}, api_timeout="200ms")).id
                for x in range(12):
                    with suppress(APIConnectionError, InternalServerError, RateLimitError):
                        answer = await boxes.actions.tap(box, x=x, y=100, options=AFTER)
                        answered.append(answer.action_id)

    async def play_all(server: LocalGBox) -> None:
        async with AsyncGboxClient(api_key=server.api_key, base_url=server.base_url, timeout=20) as client:
            await asyncio.gather(*[play(client) for _ in range(6)])

    with running(options) as server:
        asyncio.run(play_all(server))
        ledger = server.ledger()
        taps = [entry for entry in ledger["actions"] if entry["action"] == "tap"]
        seen = [entry for entry in taps if entry["lost"] in (None, FaultKind.TRUNCATED_IMAGE, FaultKind.DUPLICATE)]
        assert len(answered) == len(seen) > 50
        assert len(answered) - len(set(answered)) == ledger["summary"]["faults"]["duplicate"]
        assert set(ledger["summary"]["faults"]) == set(FaultKind)
        assert ledger["summary"]["sent_twice"] == []
        assert len(ledger["summary"]["running"]) + sum(ledger["summary"]["ended"].values()) == len(ledger["boxes"])
    assert caplog.records == []
