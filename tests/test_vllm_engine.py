"""The engine against a small real HTTP server: versions, restarts, retries, drift, the canary."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import tiny_random

from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.canary import Reading, judge
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.inference.vllm.errors import CanaryError, ServerMismatch, TokenDrift, Unavailable
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.policy import PolicyModel
from tests.vllm_fakes import FakeVllm, served, server_info
from tests.vllm_rig import QUICK, base, change, checkpoint, generate, request
from trainers.run.checkpoint import save_weights


@pytest.fixture
def policy() -> PolicyModel:
    return load_policy(checkpoint(), lora=LoraSpec(r=4))


Build = Callable[..., VllmEngine]


@pytest.fixture
def build(policy: PolicyModel) -> Iterator[Build]:
    """Makes engines of `policy` over the given addresses; they are closed afterwards."""
    engines: list[VllmEngine] = []

    def make(*urls: str, patience: Patience = QUICK, publish: bool = True) -> VllmEngine:
        plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0)
        engines.append(VllmEngine(policy, urls, plan, save_weights, patience=patience))
        if publish:
            engines[-1].update_weights(0)
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.close())
        assert not engine.weights_dir.exists()


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(base())


def test_every_version_is_loaded_before_use_and_unloaded_after(
    policy: PolicyModel, build: Build, fake: FakeVllm
) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        (first,) = generate(engine, request())
        change(policy)
        engine.update_weights(1)
        (second,) = generate(engine, request(seed=6))
        asyncio.run(engine.close())
    end = policy.special.end_of_turn_id
    assert first == GenerateResponse([5, end], [-0.5, -0.5], [0, 0], "stop")
    assert second == GenerateResponse([6, end], [-0.5, -0.5], [1, 1], "stop")
    run = engine.weights_dir.name
    assert fake.log == [
        f"load {run}-v0",
        f"sample {run}-v0",
        f"load {run}-v1",
        f"unload {run}-v0",
        f"sample {run}-v1",
        f"unload {run}-v1",
    ]


def test_an_adapter_stays_until_its_last_request_has_ended(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)

        async def scenario() -> list[int]:
            fake.hold.clear()
            slow = asyncio.create_task(engine.generate(request("slow")))
            while not fake.in_flight:
                await asyncio.sleep(0.01)
            change(policy)
            await asyncio.to_thread(engine.update_weights, 1)
            assert set(fake.adapters) == {f"{engine.weights_dir.name}-v0", f"{engine.weights_dir.name}-v1"}
            assert engine.version == 1
            fake.hold.set()
            return (await slow).versions

        assert asyncio.run(scenario()) == [0, 0]
        assert set(fake.adapters) == {f"{engine.weights_dir.name}-v1"}


def test_publishing_a_version_again_takes_another_name(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        engine.update_weights(0)
        (response,) = generate(engine, request())
        assert set(fake.adapters) == {f"{engine.weights_dir.name}-v0.1"}
        assert response.versions == [0, 0]


@pytest.mark.parametrize("fault", [0, 429, 500, 503])
def test_sampling_is_tried_again(fault: int, build: Build, fake: FakeVllm) -> None:
    fake.faults.extend([fault, fault])
    with served(fake.app()) as url:
        engine = build(url)
        (response,) = generate(engine, request())
    assert response.output_ids[0] == 5
    assert engine.counters == {"turns": 1, "retries": 2, "drifts": 0, "restores": 0}


def test_a_request_that_the_server_refuses_is_not_repeated(build: Build, fake: FakeVllm) -> None:
    fake.faults.append(400)
    with served(fake.app()) as url:
        engine = build(url)
        with pytest.raises(InferenceFailure, match="answered 400: scripted"):
            generate(engine, request())
    assert engine.counters["retries"] == 0


def test_a_restarted_server_gets_its_weights_back_once(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        change(policy)
        engine.update_weights(3)
        fake.restart()
        responses = generate(engine, *(request(f"c{i}", seed=i) for i in range(4)))
    assert [response.output_ids[0] for response in responses] == [0, 1, 2, 3]
    assert {version for response in responses for version in response.versions} == {3}
    assert fake.log.count(f"load {engine.weights_dir.name}-v3") == 2
    assert engine.counters["restores"] == 1


def test_a_server_that_comes_back_is_waited_for(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url, patience=Patience(server_s=20.0))
    fake.restart()
    port = int(url.rpartition(":")[2])

    def come_back() -> None:
        time.sleep(0.5)
        with served(fake.app(), port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        (response,) = generate(engine, request())
        assert response.versions == [0, 0]
        assert engine.counters["retries"] > 0
    finally:
        done.set()
        thread.join()


def test_a_dead_server_costs_the_episode(build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url, patience=Patience(server_s=0.2))
    with pytest.raises(InferenceFailure, match="gives no answer"):
        generate(engine, request())
    with pytest.raises(Unavailable):
        engine.update_weights(1)
    assert engine.version == 0


def test_ctrl_c_ends_the_wait_for_a_dead_server(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url, patience=Patience(server_s=60))
    started = time.monotonic()
    alarm = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        engine.update_weights(1)
    assert time.monotonic() - started < 20
    assert engine.version == 0


def test_an_episode_that_waits_when_the_engine_is_closed_is_lost(build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url, patience=Patience(server_s=60))

    async def scenario() -> None:
        waiting = asyncio.create_task(engine.generate(request()))
        while not engine.counters["retries"]:
            await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(InferenceFailure, match="closed"):
            await waiting

    asyncio.run(scenario())


def test_one_dead_server_of_two_costs_nothing(policy: PolicyModel, build: Build, fake: FakeVllm) -> None:
    other = FakeVllm(base())
    with served(fake.app()) as url:
        with served(other.app()) as second:
            engine = build(url, second)
            generate(engine, request("a"), request("b"))
            assert f"sample {engine.weights_dir.name}-v0" in fake.log
            assert f"sample {engine.weights_dir.name}-v0" in other.log
        change(policy)
        engine.update_weights(1)
        responses = generate(engine, request("a"), request("b"))
    assert [response.versions for response in responses] == [[1, 1], [1, 1]]


def test_drift_is_counted_and_costs_the_episode(build: Build, fake: FakeVllm) -> None:
    fake.faults.append("drift")
    with served(fake.app()) as url:
        engine = build(url)
        with pytest.raises(TokenDrift, match="different from position 0"):
            generate(engine, request())
        generate(engine, request())
    assert engine.counters == {"turns": 1, "retries": 0, "drifts": 1, "restores": 0}


def test_requests_at_a_time_are_bounded(build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        generate(build(url), *(request(f"c{i}", seed=i) for i in range(20)))
    assert fake.most_in_flight == QUICK.in_flight


def test_a_request_that_cannot_be_served_is_refused_before_it_is_sent(build: Build, fake: FakeVllm) -> None:
    with served(fake.app()) as url:
        engine = build(url)
        vocabulary = base().base_model.config.text_config.vocab_size
        for wrong, message in [
            (GenerateRequest("c", [], [], 1), "input_ids"),
            (GenerateRequest("c", [vocabulary], [], 1), "input_ids"),
            (GenerateRequest("c", [1], [], 1, temperature=2.5), "temperature"),
            (GenerateRequest("c", [1], [np.zeros((4, 4), np.uint8)], 1), "screenshot"),
        ]:
            with pytest.raises(ValueError, match=message):
                generate(engine, wrong)
        (full,) = generate(engine, GenerateRequest("c", [1] * 512, [], 1))
    assert full == GenerateResponse([], [], [], "length")
    assert not any(entry.startswith("sample") for entry in fake.log)


def test_a_server_that_ignores_the_adapter_stops_training(policy: PolicyModel, build: Build) -> None:
    deaf = FakeVllm(base(), ignores_adapters=True)
    with served(deaf.app()) as url:
        engine = build(url)  # a fresh adapter changes nothing, so nobody can tell yet
        change(policy)
        with pytest.raises(CanaryError, match="-v1: the server's log-probabilities"):
            engine.update_weights(1)
    assert engine.version == 0


def test_a_server_with_another_base_model_is_found_at_once(policy: PolicyModel, build: Build) -> None:
    other = load_policy(str(tiny_random.build(Path(mkdtemp()), seed=7)))
    deaf = FakeVllm(other, ignores_adapters=True)
    with served(deaf.app()) as url, pytest.raises(CanaryError, match="another base model"):
        build(url)


def test_a_restarted_server_is_asked_the_canary_again(build: Build, fake: FakeVllm, policy: PolicyModel) -> None:
    with served(fake.app()) as url:
        change(policy)
        engine = build(url)
        fake.restart()
        fake._ignores_adapters = True
        with pytest.raises(CanaryError):
            generate(engine, request())


def test_a_server_of_another_configuration_is_refused(build: Build, fake: FakeVllm) -> None:
    fake.info = server_info(lora=None)
    with served(fake.app()) as url, pytest.raises(ServerMismatch, match="--enable-lora"):
        build(url)


def reading(name: str, expected: float, observed: float) -> Reading:
    return Reading(name, np.full(4, expected), np.full(4, observed))


def test_the_canary_by_hand() -> None:
    judge([], reading("v0", -2.0, -2.1), tolerance=0.15)
    with pytest.raises(CanaryError, match=r"0\.2 from the trainer's"):
        judge([], reading("v0", -2.0, -2.2), tolerance=0.15)
    with pytest.raises(CanaryError):
        judge([], reading("v0", -2.0, float("nan")), tolerance=0.15)


def test_the_canary_must_move_with_the_trainer() -> None:
    former = [reading("v0", -2.0, -2.1)]  # the two programs differ by 0.1 to begin with
    judge(former, reading("v1", -1.9, -2.0), tolerance=0.15)
    judge(former, reading("v1", -1.99, -2.1), tolerance=0.15)  # too small a move to tell
    judge(former, reading("v1", -1.99, -2.04), tolerance=0.15, rounded=True)  # they round anew
    with pytest.raises(CanaryError, match="since v0"):
        judge(former, reading("v1", -1.99, -2.04), tolerance=0.15)
    with pytest.raises(CanaryError, match=r"since v0 the trainer's log-probabilities moved by 0\.1 on average"):
        judge(former, reading("v1", -2.1, -2.1), tolerance=0.15)
    small = [reading("v0", -2.0, -2.1), *(reading(f"v{i}", -2.0 - i / 100, -2.1) for i in range(1, 5))]
    with pytest.raises(CanaryError, match="since v0"):  # small steps add up
        judge(small, reading("v7", -2.07, -2.1), tolerance=0.15)
