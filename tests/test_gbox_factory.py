"""Boxes from creation to end: whatever happens on the way, none is left running."""

import asyncio
import gc
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.gbox.box_lifecycle import GBoxFactory
from cua_agent.envs.gbox.environment import GBoxEnvironment
from cua_agent.envs.gbox.service import new_client
from cua_agent.envs.gbox.sessions import recorded
from cua_agent.envs.local_gbox.faults import Fault, FaultKind, FaultPlan, Operation, ScriptedFaults
from cua_agent.envs.local_gbox.options import LocalGBoxOptions
from cua_agent.envs.local_gbox.server import LocalGBox, running
from cua_agent.envs.pocket.latency import Latency
from tests.gbox_rig import TASKS, WIFI_ON, factory_on, play_expert, pool_on, settings_for

CREATE = (Operation.CREATE, 1)


def server_with(**options: Any) -> Any:
    return running(LocalGBoxOptions(**options))


def boxes_of(server: LocalGBox) -> list[dict[str, Any]]:
    boxes: list[dict[str, Any]] = server.ledger()["boxes"]
    return boxes


def running_on(server: LocalGBox) -> list[str]:
    left: list[str] = server.ledger()["summary"]["running"]
    return left


def test_boxes_carry_labels_and_an_expiry() -> None:
    async def main(server: LocalGBox) -> tuple[GBoxFactory, float]:
        async with factory_on(server, run="my-run", purpose="evaluation", expires_in_s=600.0) as factory:
            box = await factory()
            reply: Any = await factory._client.v1.boxes.retrieve(box.box.id)
            return factory, (reply.expires_at - reply.created_at).total_seconds()

    with server_with() as server:
        factory, life_s = asyncio.run(main(server))
        (box,) = boxes_of(server)
    assert life_s == pytest.approx(600)
    assert box["labels"].items() >= {"made-by": "cua-grpo", "run": "my-run", "purpose": "evaluation"}.items()
    assert box["labels"]["session"] == factory.labels["session"]
    assert len(box["labels"]["creation"]) == 16


def test_two_sessions_of_one_run_do_not_end_each_others_boxes() -> None:
    async def main(server: LocalGBox) -> bool:
        async with factory_on(server, run="r") as first:
            box = await first()
            async with factory_on(server, run="r") as second:
                await second()
            return await box.is_fit()

    with server_with() as server:
        assert asyncio.run(main(server))
        assert running_on(server) == []
        assert len(boxes_of(server)) == 2


def test_boxes_of_a_killed_process_are_ended_by_the_next_one_and_those_of_a_living_one_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def main(server: LocalGBox) -> bool:
        settings = settings_for(server)
        async with factory_on(server) as living, new_client(settings) as client:
            box = await living()
            killed = GBoxFactory(client, settings, "shuffled", 1)
            with recorded(str(client.base_url), killed.session):  # the kernel unlocks it when a process is killed
                await killed()
            assert len(running_on(server)) == 2
            async with factory_on(server):
                assert running_on(server) == [box.box.id]
            return await box.is_fit()

    with server_with() as server:
        assert asyncio.run(main(server))
        assert running_on(server) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError])
def test_boxes_are_ended_however_the_block_is_left(error: type[BaseException] | None) -> None:
    async def main(server: LocalGBox) -> None:
        async with factory_on(server) as factory:
            await asyncio.gather(factory(), factory())
            if error:
                raise error

    with server_with() as server:
        if error is None:
            asyncio.run(main(server))
        else:
            with pytest.raises(error):
                asyncio.run(main(server))
        assert running_on(server) == []
        assert len(boxes_of(server)) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.SERVER_ERROR, after=True),
        Fault(FaultKind.DROP, after=True),
        Fault(FaultKind.TIMEOUT, after=True),
        Fault(FaultKind.DROP),
        Fault(FaultKind.SLOW_CREATE),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after}",
)
def test_a_creation_without_an_answer_leaks_no_box_and_is_posted_once(fault: Fault) -> None:
    async def main(server: LocalGBox) -> list[str]:
        async with factory_on(server, create_timeout_s=1.0) as factory:
            with pytest.raises(EnvironmentFailure, match="create: "):
                await factory()
            await asyncio.wait(set(factory._loose_ends) or {asyncio.create_task(asyncio.sleep(0))})
            return running_on(server)  # already during the run, not only at its end

    with server_with(faults=ScriptedFaults({CREATE: fault}), hang_s=8.0, slow_create_s=30.0) as server:
        assert asyncio.run(main(server)) == []
        assert len(boxes_of(server)) <= 1


def test_a_box_that_cannot_be_ended_at_once_is_ended_with_the_session(caplog: pytest.LogCaptureFixture) -> None:
    class ListsFailAtFirst:
        failing = True

        def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:
            if operation is Operation.CREATE:
                return Fault(FaultKind.DROP, after=True)
            return Fault(FaultKind.SERVER_ERROR) if self.failing and operation is Operation.QUERY else None

    async def main(server: LocalGBox) -> None:
        faults.failing = False
        async with factory_on(server, attempts=1) as factory:
            faults.failing = True
            with pytest.raises(EnvironmentFailure, match="create: "):
                await factory()
            await asyncio.wait(factory._loose_ends)
            assert len(running_on(server)) == 1
            faults.failing = False

    faults = ListsFailAtFirst()
    with server_with(faults=faults) as server:
        asyncio.run(main(server))
        assert running_on(server) == []
    gc.collect()  # a task's error that nobody saw is logged when the task is freed
    assert "never retrieved" not in caplog.text


def test_a_creation_that_is_cancelled_leaves_no_box() -> None:
    async def main(server: LocalGBox) -> None:
        async with factory_on(server) as factory:
            creation = asyncio.create_task(factory())
            await asyncio.sleep(0.3)
            creation.cancel()
            await asyncio.wait([creation])

    with server_with(create_latency=Latency("constant", 0.8)) as server:
        asyncio.run(main(server))
        (box,) = boxes_of(server)
        assert box["ended"] == "terminated"


def test_a_used_up_quota_is_waited_for() -> None:
    async def main(server: LocalGBox) -> list[float]:
        async with pool_on(server, 3, quota_wait_s=30.0) as pool:

            async def episode(seed: int) -> float:
                async with pool.lend() as box:
                    return await play_expert(box, TASKS["notification/w0"], seed)

            return await asyncio.gather(*map(episode, range(6)))

    with server_with(quota=1, retry_after_s=1) as server:
        assert asyncio.run(main(server)) == [1.0] * 6
        assert running_on(server) == []


def test_a_quota_that_stays_used_up_is_said() -> None:
    async def main(server: LocalGBox) -> None:
        async with factory_on(server, quota_wait_s=0.5) as factory:
            await factory()
            await factory()

    with server_with(quota=1, retry_after_s=0) as server:
        with pytest.raises(EnvironmentFailure, match="create: 429 quota: 1 of 1 boxes"):
            asyncio.run(main(server))
        assert running_on(server) == []


def test_what_no_box_can_be_made_with_stops_the_run() -> None:
    async def main(server: LocalGBox) -> None:
        async with factory_on(server, scale=0.05) as factory:
            await factory()

    with server_with() as server:
        with pytest.raises(WorldUnavailable, match="refuses to make such a box: 422 scale"):
            asyncio.run(main(server))
        assert running_on(server) == []


def test_what_cannot_be_ended_is_said_with_the_command_that_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main(server: LocalGBox) -> None:
        async with factory_on(server, run="my-run", attempts=1, call_timeout_s=1.0) as factory:
            await factory()
            faults.rate = 1.0

    class Switched:
        rate = 0.0

        def decide(self, stream: str, operation: Operation, number: int) -> Fault | None:
            broken = operation is Operation.TERMINATE and self.rate
            return Fault(FaultKind.SERVER_ERROR) if broken else None

    faults = Switched()
    with server_with(faults=faults) as server:
        asyncio.run(main(server))
        assert len(running_on(server)) == 1
    assert "terminate: 500" in caplog.text
    assert "python -m cua_agent.envs.gbox reap --run my-run" in caplog.text


@pytest.mark.slow
def test_at_a_fault_rate_of_20_per_cent_nothing_is_done_twice_and_no_box_is_left() -> None:
    """Every episode ends with the score that it deserves; those that faults broke were lost, not scored."""
    episodes = 16
    lost: Counter[str] = Counter()

    async def main(server: LocalGBox) -> list[float]:
        limits = {"call_timeout_s": 1.0, "command_timeout_s": 1.0, "create_timeout_s": 2.0}
        async with pool_on(server, 6, **limits) as pool:

            async def episode(number: int) -> float:
                task = list(TASKS.values())[number * 7 % len(TASKS)]
                while True:
                    try:
                        async with pool.lend() as box:
                            assert isinstance(box, GBoxEnvironment)
                            return await play_expert(box, task, number)
                    except EnvironmentFailure as failure:
                        lost[str(failure).partition(":")[0]] += 1

            return await asyncio.gather(*map(episode, range(episodes)))

    plan = FaultPlan(0.2, seed=1)
    with server_with(faults=plan, hang_s=5.0, slow_create_s=4.0, retry_after_s=0) as server:
        scores = asyncio.run(asyncio.wait_for(main(server), 300))
        summary = server.ledger()["summary"]
    assert scores == [1.0] * episodes
    assert sum(lost.values()) > 5
    assert summary["running"] == []
    assert summary["sent_twice"] == []
    assert len(summary["faults"]) >= 6


def test_a_task_is_reset_to_its_seed() -> None:
    async def main(server: LocalGBox) -> list[bytes]:
        async with pool_on(server, 1) as pool, pool.lend() as box:
            return [(await box.reset(WIFI_ON, seed)).screenshot.tobytes() for seed in (1, 2, 1)]

    with server_with() as server:
        first, second, again = asyncio.run(main(server))
    assert first == again != second
