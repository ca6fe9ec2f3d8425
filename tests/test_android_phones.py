"""Phones of the fake adb server that are shared, waited for, broken or missing."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cua_agent import actions
from cua_agent.actions import Point
from cua_agent.envs.base import EnvironmentFailure, WorldUnavailable
from cua_agent.envs.pool import EnvironmentPool
from tests.android_rig import SEED, WIFI_ON, on_phone, pool_on, world_on
from tests.fake_adb import FakeAdb, FakePhone, fake_adb

QUICK = [
    "run_name=r",
    "max_steps=1",
    "threads=1",
    "rollout.group_size=4",
    "rollout.groups_per_step=1",
    "rollout.concurrency=3",
    "eval.baseline=false",
    "eval.episodes=1",
    "logging.tensorboard=false",
]


@pytest.fixture
def phone() -> FakePhone:
    return FakePhone("phone-1", scale=2)


@pytest.fixture
def server(phone: FakePhone, tmp_path: Path) -> Iterator[FakeAdb]:
    with fake_adb(tmp_path / "adb", phone) as server:
        yield server


@pytest.mark.slow
def test_no_two_episodes_are_on_one_phone_also_of_two_runs(tmp_path: Path) -> None:
    held: set[str] = set()
    served: list[str] = []

    async def episode(pool: EnvironmentPool) -> None:
        async with pool.lend() as environment:
            serial = environment._world.phone.serial  # type: ignore[attr-defined]
            assert serial not in held
            held.add(serial)
            await environment.reset(WIFI_ON, SEED)
            await asyncio.sleep(0.05)
            held.remove(serial)
            served.append(serial)

    async def main(server: FakeAdb) -> None:
        async with pool_on(server, size=4) as one, pool_on(server, size=2) as other:
            await asyncio.gather(*(episode(pool) for pool in (one, one, one, one, other, other)))

    with fake_adb(tmp_path / "adb", FakePhone("a"), FakePhone("b"), FakePhone("off", state="offline")) as server:
        asyncio.run(main(server))
    assert len(served) == 6 and set(served) <= {"a", "b"}


def test_an_episode_waits_for_a_phone_only_so_long(server: FakeAdb) -> None:
    async def main() -> None:
        async with pool_on(server, size=2, wait_s=0.0) as pool, pool.lend(), pool.lend():
            pass

    with pytest.raises(EnvironmentFailure, match=r"no phone became free within 0 s \(env\.args\.wait_s\): phone-1$"):
        asyncio.run(main())


def offline(server: FakeAdb, phone: FakePhone) -> None:
    phone.state = "offline"


def unauthorized(server: FakeAdb, phone: FakePhone) -> None:
    phone.state = "unauthorized"


def server_gone(server: FakeAdb, phone: FakePhone) -> None:
    server.stop()


def slow(server: FakeAdb, phone: FakePhone) -> None:
    phone.delay_s = 60.0


def truncated(server: FakeAdb, phone: FakePhone) -> None:
    phone.cut = 300


def cut_off(server: FakeAdb, phone: FakePhone) -> None:
    """The server dies while a command is under way."""
    phone.delay_s = 2.0
    threading.Timer(0.5, server.stop).start()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (offline, r"phone-1: input: device offline"),
        (unauthorized, r"phone-1: input: device unauthorized\."),
        (server_gone, r"phone-1: input: no adb server answers at 127\.0\.0\.1:\d+ \(.*\); adb start-server"),
        (slow, r"phone-1: input: adb read timeout"),
        (truncated, r"phone-1: screenshot: .*truncated.*"),
        (cut_off, r"phone-1: input: Expected 5 bytes, got 0"),
    ],
)
def test_a_fault_costs_the_episode_and_is_one_line(
    fault: Callable[[FakeAdb, FakePhone], None], line: str, server: FakeAdb, phone: FakePhone
) -> None:
    async def play(environment: Any) -> None:
        await environment.reset(WIFI_ON, SEED)
        fault(server, phone)
        await environment.step(actions.Tap(Point(10, 10)))

    with pytest.raises(EnvironmentFailure) as failure:
        on_phone(server, play, call_timeout_s=10.0 if fault is slow else 30.0)
    assert re.fullmatch(line, str(failure.value))


def test_after_a_fault_the_next_episode_is_on_a_phone_that_is_ready(tmp_path: Path) -> None:
    phones = [FakePhone("a"), FakePhone("b")]

    async def main(server: FakeAdb) -> set[str]:
        async with pool_on(server) as pool:
            with pytest.raises(EnvironmentFailure):
                async with pool.lend() as environment:
                    broken = environment._world.phone.serial
                    server.phones[broken].state = "offline"
                    await environment.reset(WIFI_ON, SEED)
            others = set()
            for _ in range(3):
                async with pool.lend() as environment:
                    await environment.reset(WIFI_ON, SEED)
                    others.add(environment._world.phone.serial)
            assert broken not in others
            return others

    with fake_adb(tmp_path / "adb", *phones) as server:
        assert len(asyncio.run(main(server))) == 1


def test_a_phone_is_given_back_only_when_nothing_is_under_way_on_it(server: FakeAdb, phone: FakePhone) -> None:
    async def main() -> None:
        async with pool_on(server, wait_s=60.0) as pool:
            with pytest.raises(TimeoutError):
                async with pool.lend() as environment, asyncio.timeout(0.2):
                    phone.delay_s = 1.0
                    await environment._world.phone.run("input tap 1 1")
            phone.delay_s = 0.0
            async with pool.lend() as environment:
                await environment._world.phone.run("input tap 2 2")

    asyncio.run(main())
    assert [argv for argv in phone.ran if argv[0] == "input"] == [
        ["input", "tap", "1", "1"],
        ["input", "tap", "2", "2"],
    ]


@pytest.mark.parametrize(
    ("serials", "line"),
    [
        ((), ""),
        (("good",), ""),
        (("good", "new"), "env=android: new is unauthorized (allow USB debugging on its screen); leave it out of "),
        (("lost", "new"), "env=android: no phone is ready: lost is not connected, new is unauthorized (allow USB "),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(serials: tuple[str, ...], line: str, tmp_path: Path) -> None:
    with fake_adb(tmp_path / "adb", FakePhone("good"), FakePhone("new", state="unauthorized")) as server:
        if not line:
            world_on(server, serials=serials).check()
            return
        with pytest.raises(WorldUnavailable) as problem:
            world_on(server, serials=serials).check()
        assert str(problem.value).startswith(line) and "\n" not in str(problem.value)


def test_no_server_and_no_phone_are_told_apart(tmp_path: Path) -> None:
    with fake_adb(tmp_path / "adb") as server:
        world = world_on(server)
        with pytest.raises(WorldUnavailable, match=r"^env=android: no phone is ready: none is connected$"):
            world.check()
    with pytest.raises(WorldUnavailable, match=r"^env=android: no adb server answers at 127\.0\.0\.1:\d+ \(.*\); adb "):
        world.check()


@pytest.mark.slow
def test_training_uses_all_phones_and_says_when_they_are_gone(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).parents[1] / "train.py"), "env=android", "experiment=quick"]
    keys = [*QUICK, "env.args.screenshot_delay_s=0", f"output_dir={tmp_path}"]
    with fake_adb(tmp_path / "adb", FakePhone("a"), FakePhone("b")) as server:
        keys.append(f"env.args.port={server.port}")
        trained = subprocess.run([*script, *keys], capture_output=True, text=True, timeout=500, check=False)
        assert trained.returncode == 0, trained.stderr
        assert json.loads((tmp_path / "r" / "summary.json").read_text())["steps"] == 1
        assert all(phone.shell_lines for phone in server.phones.values())
    refused = subprocess.run([*script, *keys], capture_output=True, text=True, timeout=500, check=False)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: env=android: no adb server answers at .*; adb start-server\n", refused.stderr)
